"""The note of a result: why a fetch failed, in the words of the log and of the dead letter."""

import errno
import json
from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet import Accept, Fetch, Outcome, Reason, Result
from fetchfleet.jobs import keys
from fetchfleet.worker.cli.render import result_line
from tests.component.conftest import Lines, Start, on_both_engines
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Behaviour, Origin

HTML = [("Content-Type", "text/html")]
FAILURES: dict[str, tuple[Behaviour, dict[str, Any], Reason, str]] = {
    "/type": (o.ok(b"x", HTML), {"accept": Accept(types=("image/*",))}, Reason.TYPE_REFUSED, "text/html"),
    "/digest": (o.ok(b"x"), {"sha256": "0" * 64}, Reason.DIGEST_MISMATCH, f"expected {'0' * 64}"),
    "/large": (o.ok(b"x" * 99), {"max_bytes": 10}, Reason.TOO_LARGE, "10"),
    "/reset": (o.reset, {}, Reason.READ, ""),
    "/redirect": (o.redirect("ftp://a/?token=hunter2"), {}, Reason.REDIRECT_REFUSED, "Location"),
}
"""The response, the fields of the fetch, the reason, and a part of the note, by path."""


async def notes_in_stream(redis: Redis, result: Result) -> list[dict[str, Any]]:
    """Return the fields of the fetch's results as they are in Redis."""
    rows = await redis.xrange(keys.results(result.id.partition("-")[0]))
    return [fields for _, row in rows if (fields := json.loads(row[b"r"]))["id"] == result.id]


@on_both_engines
async def test_the_note_of_a_result_is_that_of_the_log_and_of_the_dead_letter(
    origin: Origin, start: Start, lines: Lines
) -> None:
    """It names the failure, without secrets."""
    worker = await start(policy={"attempts": 1})
    origin.behaviour = o.by_path({path: behaviour for path, (behaviour, *_) in FAILURES.items()})
    results = await worker.results(
        Fetch(url=origin.url(path), **fields) for path, (_, fields, *_) in FAILURES.items()
    )
    logged = {line["id"]: line["note"] for line in lines if line["event"] == "fetch.finished"}
    letters = {letter.id: letter.note async for letter in worker.fleet.dead.iter()}

    assert [reason for *_, reason, _ in FAILURES.values()] == [result.reason for result in results]
    for result, (*_, part) in zip(results, FAILURES.values(), strict=True):
        assert result.note
        assert part in result.note
        assert result.note == logged[result.id] == letters[result.id]
        assert f"{result.reason}: {result.note}" in result_line(result)
    assert "hunter2" not in str(results)


async def test_a_refused_connection_is_named(worker: OneWorker) -> None:
    """By the error of the system, whose text depends on the event loop."""
    result = await worker.one("http://127.0.62.13:1/")

    assert result.reason is Reason.CONNECT
    assert f"[Errno {errno.ECONNREFUSED}]" in (result.note or "")


@pytest.mark.parametrize(
    ("path", "outcome"), [("/ok", Outcome.STORED), ("/gone", Outcome.FAILED), ("/same", Outcome.UNCHANGED)]
)
async def test_a_result_without_a_note_does_not_have_the_field(
    origin: Origin, worker: OneWorker, redis: Redis, path: str, outcome: Outcome
) -> None:
    """A stored body costs no byte for it. Readers get None."""
    origin.behaviour = o.by_path({"/gone": o.NOT_FOUND, "/same": o.status(304)}, o.ok(b"x"))
    result = await worker.one(origin.url(path), headers={"If-None-Match": '"a"'})

    assert (outcome, None) == (result.outcome, result.note)
    [stored] = await notes_in_stream(redis, result)
    assert "note" not in stored
