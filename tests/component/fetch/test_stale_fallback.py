"""The stale fallback: if the host is down, the body of an earlier batch is the result."""

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from fetchfleet import Outcome, Reason, Result
from tests.component.conftest import Lines, Start
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Behaviour, Exchange, Origin

STALE = {"fallback": "stale", "attempts": 2}
BODY = b"as it was"


@pytest.fixture
async def careful(start: Start) -> OneWorker:
    """Return a worker whose policy has `fallback = "stale"`."""
    return await start(policy=STALE)


def records(worker: OneWorker) -> list[Path]:
    """Return the paths of the records of stored bodies."""
    return sorted((worker.out / ".fetchfleet" / "stored").rglob("*.json"))


async def stored(origin: Origin, worker: OneWorker, path: str = "/a", **fields: Any) -> Result:
    """Return the result of a fetch while the host is up."""
    origin.behaviour = o.ok(BODY)
    result = await worker.one(origin.url(path), **fields)
    assert result.outcome is Outcome.STORED
    return result


def assert_stands_in(before: Result, after: Result, worker: OneWorker) -> None:
    """Assert that the second result has the file of the first."""
    assert (after.outcome, after.stale) == (Outcome.UNCHANGED, True)
    assert (after.path, after.bytes, after.sha256) == (before.path, before.bytes, before.sha256)
    assert worker.body(after) == BODY


@pytest.mark.parametrize("by", ["policy", "fetch"])
async def test_the_stored_body_is_the_result_while_the_host_is_down(
    origin: Origin, start: Start, lines: Lines, by: str
) -> None:
    """The policy or the fetch allows it. The result keeps the reason of the failure."""
    worker = await start(policy=STALE if by == "policy" else {"attempts": 2})
    fields = {} if by == "policy" else {"fallback": "stale"}
    before = await stored(origin, worker, **fields)
    origin.behaviour = o.status(500)

    after = await worker.one(origin.url("/a"), **fields)

    assert_stands_in(before, after, worker)
    assert (after.reason, after.status, after.attempts) == (Reason.HTTP_STATUS, 500, 2)
    assert hashlib.sha256(BODY).hexdigest() == after.sha256
    [first, last] = [line for line in lines if line["event"] == "fetch.finished"]
    assert (first["stale"], last["stale"], last["outcome"]) == (False, True, "unchanged")


async def test_without_a_fallback_no_record_is_written(origin: Origin, worker: OneWorker) -> None:
    """A later fetch that allows the fallback fails."""
    await stored(origin, worker)
    await stored(origin, worker, "/b", fallback="none")
    origin.behaviour = o.status(500)

    result = await worker.one(origin.url("/a"), fallback="stale")

    assert (result.outcome, result.stale) == (Outcome.FAILED, False)
    assert not (worker.out / ".fetchfleet" / "stored").exists()


async def test_a_fetch_may_refuse_the_fallback(origin: Origin, careful: OneWorker) -> None:
    """Its own `fallback` overrides that of the policy."""
    await stored(origin, careful)
    origin.behaviour = o.status(500)

    result = await careful.one(origin.url("/a"), fallback="none")

    assert (result.outcome, result.reason, result.path) == (Outcome.FAILED, Reason.HTTP_STATUS, None)


async def test_the_fallback_covers_refused_connections(start: Start) -> None:
    """It takes effect after the last attempt."""
    worker = await start(policy=STALE)
    async with Origin.serving("127.0.0.13", o.OK) as origin:
        before = await stored(origin, worker)
        url = origin.url("/a")

    after = await worker.one(url)

    assert_stands_in(before, after, worker)
    assert (after.reason, after.status, after.attempts) == (Reason.CONNECT, None, 2)


async def test_the_fallback_covers_a_cool_down_past_the_deadline(origin: Origin, careful: OneWorker) -> None:
    """The first fetch is throttled. The second finds the lane closed."""
    before = await stored(origin, careful)
    origin.behaviour = o.retry_after(3600)

    throttled = await careful.one(origin.url("/a"), deadline_s=1.0)
    late = await careful.one(origin.url("/a"), deadline_s=0.5)

    assert_stands_in(before, throttled, careful)
    assert_stands_in(before, late, careful)
    assert (Reason.THROTTLED, Reason.THROTTLED) == (throttled.reason, late.reason)
    assert 2 == len(origin.requests)


async def test_the_fallback_covers_a_breaker_open_past_the_deadline(origin: Origin, start: Start) -> None:
    """The fetches end at their deadlines, after two requests in all."""
    worker = await start(policy={**STALE, "attempts": 9, "breaker_failures": 1, "breaker_reset_s": 60})
    before = await stored(origin, worker)
    origin.behaviour = o.status(500)

    results = [await worker.one(origin.url("/a"), deadline_s=0.5) for _ in range(2)]

    for after in results:
        assert_stands_in(before, after, worker)
        assert after.reason is Reason.DEADLINE
    assert 2 == len(origin.requests)


async def test_the_fallback_covers_a_dead_host(origin: Origin, start: Start) -> None:
    """The fetch has attempts left."""
    policy = {**STALE, "attempts": 9, "breaker_failures": 1, "breaker_reset_s": 0.05, "give_up_s": 0.01}
    worker = await start(policy=policy)
    before = await stored(origin, worker)
    origin.behaviour = o.status(500)

    after = await worker.one(origin.url("/a"))

    assert_stands_in(before, after, worker)
    assert after.reason is Reason.HOST_DEAD


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (o.NOT_FOUND, Reason.HTTP_STATUS),
        (o.status(408), Reason.HTTP_STATUS),
        (o.status(501), Reason.HTTP_STATUS),
        (o.status(302), Reason.REDIRECT_REFUSED),
        (o.truncated(b"half", 8), Reason.TRUNCATED),
    ],
    ids=["404", "408", "501", "no-location", "truncated"],
)
async def test_the_fallback_does_not_cover_a_host_that_is_up(
    origin: Origin, careful: OneWorker, behaviour: Behaviour, reason: Reason
) -> None:
    """Only a 5xx other than 501 and 505 shows a failing host. A truncated body does not."""
    await stored(origin, careful)
    origin.behaviour = behaviour

    result = await careful.one(origin.url("/a"))

    assert (result.outcome, result.reason, result.stale) == (Outcome.FAILED, reason, False)
    assert (result.path, result.bytes, result.sha256) == (None, None, None)


async def test_the_fallback_does_not_cover_a_disallowed_url(origin: Origin, start: Start) -> None:
    """The robots.txt forbids the fetch after the body was stored."""
    first = await start(policy=STALE)
    await stored(origin, first, "/x")
    await first.stop()
    second = await start(policy={**STALE, "robots": "obey"}, worker_id="two")
    origin.behaviour = o.by_path({"/robots.txt": o.ok(b"User-agent: *\nDisallow: /x"), "/": o.status(500)})

    result = await second.one(origin.url("/x"))

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.ROBOTS_DISALLOWED)


@pytest.mark.parametrize("how", ["never-stored", "deleted", "truncated", "changed", "linked"])
async def test_a_missing_or_changed_file_is_not_a_fallback(
    origin: Origin, careful: OneWorker, tmp_path: Path, how: str
) -> None:
    """A symbolic link to the same bytes is not a fallback either."""
    before = await stored(origin, careful, "/b" if how == "never-stored" else "/a")
    assert before.path is not None
    file = careful.out / before.path
    if how == "deleted":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(BODY[:-1])
    elif how == "changed":
        file.write_bytes(BODY[::-1])
        os.utime(file, (1, 1))
    elif how == "linked":
        (tmp_path / "outside").write_bytes(BODY)
        file.unlink()
        file.symlink_to(tmp_path / "outside")
    origin.behaviour = o.status(500)

    result = await careful.one(origin.url("/a"))

    assert (result.outcome, result.stale, result.path) == (Outcome.FAILED, False, None)


async def test_a_file_with_another_time_and_the_same_bytes_is_a_fallback(
    origin: Origin, careful: OneWorker
) -> None:
    """A copy may have another modification time."""
    before = await stored(origin, careful)
    assert before.path is not None
    os.utime(careful.out / before.path, (1, 1))
    origin.behaviour = o.status(500)

    assert_stands_in(before, await careful.one(origin.url("/a")), careful)


async def test_the_file_at_the_dest_is_a_fallback(origin: Origin, careful: OneWorker) -> None:
    """Its digest is in the result only if a record has it. A fetch with a `sha256` needs that record."""
    before = await stored(origin, careful, dest="x/known")
    (careful.out / "unknown").write_bytes(BODY)
    origin.behaviour = o.status(500)

    known = await careful.one(origin.url("/a"), dest="x/known")
    unknown = await careful.one(origin.url("/z"), dest="unknown")
    wanted = await careful.one(origin.url("/z"), dest="unknown", sha256=before.sha256)
    elsewhere = await careful.one(origin.url("/a"), dest="new")

    assert_stands_in(before, known, careful)
    assert (unknown.outcome, unknown.stale, unknown.path) == (Outcome.UNCHANGED, True, "unknown")
    assert (unknown.bytes, unknown.sha256) == (len(BODY), None)
    assert wanted.outcome is Outcome.FAILED
    assert_stands_in(before, elsewhere, careful)


async def test_the_last_stored_body_is_the_fallback(origin: Origin, careful: OneWorker) -> None:
    """A body above the `max_bytes` of the fetch is not a fallback."""
    await stored(origin, careful)
    origin.behaviour = o.ok(b"newer")
    newer = await careful.one(origin.url("/a"))
    origin.behaviour = o.status(500)

    after = await careful.one(origin.url("/a"))
    small = await careful.one(origin.url("/a"), max_bytes=2)

    assert (after.path, careful.body(after)) == (newer.path, b"newer")
    assert small.outcome is Outcome.FAILED
    assert 1 == len(records(careful))


async def test_a_body_behind_a_redirect_is_recorded_under_the_url_of_its_fetch(
    origin: Origin, other: Origin, start: Start
) -> None:
    """The policy of the host of this URL applies."""
    worker = await start(hosts={"127.0.0.11": STALE})
    other.behaviour = o.ok(BODY)
    origin.behaviour = o.redirect(other.url)
    before = await worker.one(origin.url("/a"))
    other.behaviour = o.status(500)

    after = await worker.one(origin.url("/a"))

    assert_stands_in(before, after, worker)
    assert after.final_url == other.url("/a")


async def test_an_invalid_record_is_ignored(origin: Origin, careful: OneWorker, tmp_path: Path) -> None:
    """Its path leads out of the out folder, or it is malformed."""
    await stored(origin, careful)
    [place] = records(careful)
    (tmp_path / "secret").write_bytes(BODY)
    record = {**json.loads(place.read_bytes()), "path": "../secret"}
    origin.behaviour = o.status(500)

    place.write_text(json.dumps(record))
    out = await careful.one(origin.url("/a"))
    place.write_bytes(b"\xff{")
    junk = await careful.one(origin.url("/a"))

    assert (Outcome.FAILED, Outcome.FAILED) == (out.outcome, junk.outcome)


async def test_a_body_is_stored_although_its_record_cannot_be_written(
    origin: Origin, careful: OneWorker
) -> None:
    """A file has the name of the folder for records."""
    (careful.out / ".fetchfleet" / "stored").write_text("in the way")

    result = await stored(origin, careful)

    assert careful.body(result) == BODY
    assert {".fetchfleet/stored"} == careful.parts()


async def test_a_fallback_makes_no_dead_letter_and_counts_no_bytes(
    origin: Origin, careful: OneWorker
) -> None:
    """It counts as unchanged."""
    await stored(origin, careful)
    origin.behaviour = o.status(500)
    batch = await careful.submit([origin.url("/a"), origin.url("/never")])
    await results_of(batch)

    counts = await batch.counts()

    assert (counts.unchanged, counts.failed, counts.bytes) == (1, 1, 0)
    assert 1 == await careful.runtime.redis.xlen("ff:dead")


async def test_a_cancelled_fetch_gets_no_fallback(origin: Origin, careful: OneWorker) -> None:
    """Its host stalls."""
    await stored(origin, careful)
    asked = asyncio.Event()

    async def stall(_: Exchange) -> None:
        asked.set()
        await asyncio.Event().wait()

    origin.behaviour = stall
    batch = await careful.submit([origin.url("/a")])
    await wait_until(asked.is_set, "the request")
    await batch.cancel()

    [result] = await results_of(batch)

    assert (result.outcome, result.stale, result.path) == (Outcome.CANCELLED, False, None)
