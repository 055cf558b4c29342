"""A body that broke off goes on where it stopped, and what it comes to is what the host has."""

import asyncio
import hashlib
import threading
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fetchfleet import Fetch, Outcome, Reason, Result
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import PartialNote, parse_entry
from fetchfleet.jobs.contract.urls import lane_of_url
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.sink.files.directory import PARTIAL_FILES, Directory
from tests.component.conftest import Start, tuned
from tests.support.ranged import Ranged, Twisted, body_of, range_of
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Behaviour, Exchange, Header, Origin

BODY = body_of(3_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
BREAK = 1_234_567
ETAG: list[Header] = [("ETag", '"one"')]
OLD: list[Header] = [
    ("Last-Modified", "Tue, 15 Nov 1994 12:45:25 GMT"),
    ("Date", "Tue, 15 Nov 1994 12:45:26 GMT"),
]


def is_the_body(result: Result, worker: OneWorker) -> bool:
    """Whether what is stored is the body, byte for byte, and nothing else is there."""
    assert (result.outcome, result.bytes, result.sha256) == (Outcome.STORED, len(BODY), SHA256), result
    assert worker.files() == {result.path}
    assert not worker.parts()
    return worker.body(result) == BODY


@pytest.mark.parametrize("headers", [ETAG, OLD], ids=["etag", "last-modified"])
async def test_a_body_goes_on_where_it_broke_off(
    origin: Origin, worker: OneWorker, headers: list[Header]
) -> None:
    """The host is asked for what is missing, as often as it breaks; each time costs an attempt."""
    origin.behaviour = ranged = Ranged(BODY, headers, [BREAK, 1_000_000])

    result = await worker.one(origin.url())

    assert is_the_body(result, worker)
    stopped = [BREAK, BREAK + 1_000_000]
    assert [range_of(seen) for seen in origin.requests] == [None, *(f"bytes={at}-" for at in stopped)]
    assert [Origin.header(seen, "If-Range") for seen in origin.requests] == [None, *[headers[0][1]] * 2]
    assert {Origin.header(seen, "Accept-Encoding") for seen in origin.requests} == {"identity"}
    assert ranged.sent_bytes == [len(BODY), *(len(BODY) - at for at in stopped)]
    assert (result.status, result.attempts, result.interruptions) == (206, 3, 0)


async def test_a_body_goes_on_after_a_reset(origin: Origin, worker: OneWorker) -> None:
    """What was on its way is lost with the connection; the rest is asked for from what had come."""
    origin.behaviour = Ranged(BODY, breaks=[2_500_000], ends=Exchange.abort)

    assert is_the_body(await worker.one(origin.url(), sha256=SHA256), worker)

    assert len(origin.requests) == 2


async def test_a_body_goes_on_after_a_timeout(origin: Origin, start: Start) -> None:
    """The attempt's total ran out in the middle: the next one takes the rest."""
    limits = Timeouts(connect_s=5, read_s=5, write_s=5, pool_s=5, total_s=4)
    worker = await start(policy={"timeout": limits})
    whole = Ranged(BODY)

    async def stalls(x: Exchange) -> None:
        await x.send_head(200, [*ETAG, ("Content-Length", str(len(BODY)))])
        await x.send(BODY[:BREAK])
        await asyncio.Event().wait()

    origin.behaviour = o.sequence(stalls, whole)

    assert is_the_body(await worker.one(origin.url()), worker)

    assert range_of(origin.requests[1]) is not None


@pytest.mark.parametrize("headers", [[], [("ETag", 'W/"one"')], [("Last-Modified", OLD[1][1]), OLD[1]]])
async def test_without_a_strong_validator_a_body_starts_again(
    origin: Origin, worker: OneWorker, headers: list[Header]
) -> None:
    """Nobody could say that the rest is of the same."""
    origin.behaviour = Ranged(BODY, headers, [BREAK])

    assert is_the_body(await worker.one(origin.url()), worker)

    assert [range_of(seen) for seen in origin.requests] == [None, None]


async def test_a_small_body_starts_again(origin: Origin, worker: OneWorker) -> None:
    """What is less than a block is not worth a range."""
    origin.behaviour = Ranged(BODY, breaks=[400_000])

    assert is_the_body(await worker.one(origin.url()), worker)

    assert [range_of(seen) for seen in origin.requests] == [None, None]


async def test_a_body_that_has_changed_comes_whole(origin: Origin, worker: OneWorker) -> None:
    """A 200 to the question for the rest takes the place of what was there."""
    other = body_of(2_000_000)[::-1]
    origin.behaviour = o.sequence(Ranged(BODY, breaks=[BREAK]), Ranged(other, [("ETag", '"two"')]))

    result = await worker.one(origin.url())

    assert worker.body(result) == other
    assert (result.status, result.attempts, len(origin.requests)) == (200, 2, 2)
    assert not worker.parts()


def told(status: int, content_range: str, *headers: Header) -> Callable[[int, int], Twisted]:
    """Answers to a range with these; {start}, {last} and {total} are filled in."""

    def twist(start: int, total: int) -> Twisted:
        numbers = {"start": start, "before": start - 1, "last": total - 1, "total": total, "more": total + 1}
        content = BODY[start:] if status == 206 else b""
        return status, [("Content-Range", content_range.format(**numbers)), *headers], content

    return twist


@pytest.mark.parametrize(
    "twist",
    [
        told(206, "bytes {before}-{last}/{total}"),
        told(206, "bytes {start}-{last}/{more}"),
        told(206, "bytes {start}-{last}/{total}", ("ETag", '"two"')),
        told(206, "bytes {start}-{last}/{total}", ("ETag", 'W/"one"')),
        told(206, "", ("Content-Type", "multipart/byteranges; boundary=x")),
        told(416, "bytes */{total}"),
        told(416, "bytes */{more}"),
    ],
    ids=["start", "total", "etag", "weak", "multipart", "416", "416-longer"],
)
async def test_what_does_not_fit_is_never_appended(
    origin: Origin, worker: OneWorker, twist: Callable[[int, int], Twisted]
) -> None:
    """The body is asked for from its beginning, at once and within the same attempt."""
    origin.behaviour = Ranged(BODY, breaks=[BREAK], twist=twist)

    result = await worker.one(origin.url())

    assert is_the_body(result, worker)
    assert [range_of(seen) for seen in origin.requests] == [None, f"bytes={BREAK}-", None]
    assert result.attempts == 2


RANGE = "bytes=3-1000000"
OF_THE_CALLER = {"Range": RANGE}
ANEW = [None, f"bytes={BREAK}-", None]

CURLS: list[tuple[dict[str, str], int, str, tuple[Outcome, int], list[str | None]]] = [
    # the caller's headers, the answer's status and Content-Range; what comes of it, what was asked for
    (OF_THE_CALLER, 200, "", (Outcome.STORED, 200), [RANGE]),  # curl: ok, ok
    (OF_THE_CALLER, 200, "bytes 3/7", (Outcome.STORED, 200), [RANGE]),  # ok, ok
    (OF_THE_CALLER, 416, "", (Outcome.FAILED, 416), [RANGE]),  # ok, an error
    (OF_THE_CALLER, 416, "bytes */2", (Outcome.FAILED, 416), [RANGE]),  # ok, an error
    ({}, 200, "", (Outcome.STORED, 200), ANEW[:2]),  # a range error, a range error
    ({}, 200, "bytes 3/7", (Outcome.STORED, 200), ANEW[:2]),  # appended, appended
    ({}, 416, "", (Outcome.STORED, 200), ANEW),  # taken for whole, an error
    ({}, 416, "bytes */2", (Outcome.STORED, 200), ANEW),  # taken for whole, an error
]
"""The sixteen rows of curl's test 1156, two a line: without its --fail and with it.

Here a 4xx always is an error, so that both come to the same. What is resumed ends as what the host has: a
half that does not fit is not kept, as curl does, but replaced.
"""


@pytest.mark.parametrize(("headers", "status", "content_range", "ends", "asked"), CURLS)
async def test_curls_matrix_of_ranges_and_resuming(
    origin: Origin,
    worker: OneWorker,
    headers: dict[str, str],
    status: int,
    content_range: str,
    ends: tuple[Outcome, int],
    asked: list[str | None],
) -> None:
    """A caller's own range is sent, what comes of it told as it is; a half is gone on with or had anew."""
    told = [("Content-Range", content_range)] if content_range else []
    content = BODY if status == 200 else b"body"

    async def caller(x: Exchange) -> None:
        await x.respond(status, told, content)

    ranged = Ranged(BODY, breaks=[BREAK], twist=lambda *_: (status, told, content))
    origin.behaviour = caller if headers else ranged

    result = await worker.one(origin.url(), headers=headers)

    assert (result.outcome, result.status) == ends
    assert result.reason is (Reason.HTTP_STATUS if status == 416 and headers else None)
    assert [range_of(seen) for seen in origin.requests] == asked
    assert result.outcome is Outcome.FAILED or is_the_body(result, worker)
    assert not worker.parts()


async def test_416_at_the_end_is_the_end(origin: Origin, worker: OneWorker) -> None:
    """All had come but the last chunk that says so: the host has no more."""
    chunks = [BODY[at : at + 100_000] for at in range(0, len(BODY), 100_000)]

    async def without_end(x: Exchange) -> None:
        await x.send_head(200, [*ETAG, ("Transfer-Encoding", "chunked")])
        for chunk in chunks:
            await x.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        x.close()

    origin.behaviour = o.sequence(without_end, Ranged(BODY))

    result = await worker.one(origin.url())

    assert is_the_body(result, worker)
    assert (result.status, result.attempts, len(origin.requests)) == (416, 2, 2)


async def test_an_answer_without_a_body_leaves_the_half_as_it_is(origin: Origin, worker: OneWorker) -> None:
    """A host that breaks, refuses and asks for quiet in between is asked on from where it stopped."""
    rest = Ranged(BODY)
    between = [o.status(503), o.retry_after(0.05), o.status(500)]
    origin.behaviour = o.sequence(Ranged(BODY, breaks=[BREAK]), *between, rest)

    result = await worker.one(origin.url())

    assert is_the_body(result, worker)
    assert rest.sent_bytes == [len(BODY) - BREAK]


async def test_where_a_redirect_leads_the_body_goes_on(origin: Origin, worker: OneWorker) -> None:
    """Only the host of the body is asked for a range, at the URL it came from."""
    ranged = Ranged(BODY, breaks=[BREAK])
    origin.behaviour = o.by_path({"/from": o.redirect("/to"), "/to": ranged})

    assert is_the_body(await worker.one(origin.url("/from")), worker)

    asked = [(seen.target, range_of(seen)) for seen in origin.requests]
    assert asked == [("/from", None), ("/to", None), ("/from", None), ("/to", f"bytes={BREAK}-")]


@pytest.mark.parametrize(
    "fields", [{"method": "POST", "retry_unsafe": True}, {"headers": {"Range": "bytes=0-"}}]
)
async def test_what_is_no_plain_get_starts_again(
    origin: Origin, worker: OneWorker, fields: dict[str, Any]
) -> None:
    """A POST is another request each time, and a caller's own range is sent as it is."""
    origin.behaviour = Ranged(BODY, breaks=[BREAK])

    result = await worker.one(origin.url(), **fields)

    assert worker.body(result) == BODY
    assert len({range_of(seen) for seen in origin.requests}) == 1


async def test_a_failed_fetch_leaves_nothing(origin: Origin, start: Start) -> None:
    """The half goes when nobody will come for the rest."""
    worker = await start(policy={"attempts": 2})
    origin.behaviour = Ranged(BODY, breaks=[BREAK, 10])

    result = await worker.one(origin.url())

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.TRUNCATED)
    assert not worker.files() | worker.parts()


async def test_more_than_the_whole_is_no_half(origin: Origin, worker: OneWorker) -> None:
    """A host that goes on after what it called the end is asked again from 0."""

    async def goes_on(x: Exchange) -> None:
        last = len(BODY) - 1
        told = ("Content-Range", f"bytes {BREAK}-{last}/{len(BODY)}")
        await x.send_head(206, [told, *ETAG, ("Transfer-Encoding", "chunked")])
        await x.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))

    origin.behaviour = o.sequence(Ranged(BODY, breaks=[BREAK]), goes_on, Ranged(BODY))

    result = await worker.one(origin.url())

    assert is_the_body(result, worker)
    assert [range_of(seen) for seen in origin.requests] == [None, f"bytes={BREAK}-", None]


@asynccontextmanager
async def waiting_with_half(origin: Origin, worker: OneWorker) -> Any:
    """A batch of one fetch that has half of its body and waits for the next attempt."""
    origin.behaviour = Ranged(BODY, breaks=[BREAK])
    batch = await worker.submit([Fetch(url=origin.url())])
    later = keys.later(lane_of_url(origin.url()))
    await wait_until(lambda: worker.runtime.redis.exists(later), "a failed attempt", every_s=0.001)
    yield batch


async def test_a_cancelled_fetch_leaves_nothing(origin: Origin, start: Start) -> None:
    """Half of a body that nobody wants any more is removed."""
    worker = await start(policy={"retry_base_s": 3000, "retry_cap_s": 3000})
    async with waiting_with_half(origin, worker) as batch:
        assert worker.parts()
        await batch.cancel()
        [result] = await results_of(batch)

    assert result.outcome is Outcome.CANCELLED
    await wait_until(lambda: not worker.parts(), "the part's end")


async def test_a_worker_that_stops_hands_its_half_to_the_next(origin: Origin, start: Start) -> None:
    """SIGTERM in the middle: what had come is kept, and charged as an interruption alone."""
    first = await start(grace_s=0.1)
    origin.behaviour = o.sequence(_stalls, Ranged(BODY))
    batch = await first.submit([origin.url()])
    await wait_until(lambda: first.runtime.services.sink.disk.received_bytes == BREAK, "half a body")
    await first.stop()
    second = await start(worker_id="two")

    [result] = await results_of(batch)

    assert is_the_body(result, second)
    assert [range_of(seen) for seen in origin.requests] == [None, f"bytes={BREAK}-"]
    assert (result.attempts, result.interruptions, result.worker) == (1, 1, "two")


async def test_a_half_on_another_disk_is_not_missed(origin: Origin, start: Start, tmp_path: Path) -> None:
    """The next worker does not have it and starts at 0."""
    first = await start(grace_s=0.1)
    origin.behaviour = o.sequence(_stalls, Ranged(BODY))
    batch = await first.submit([origin.url()])
    await wait_until(lambda: first.runtime.services.sink.disk.received_bytes == BREAK, "half a body")
    await first.stop()
    for part in (tmp_path / "out" / ".fetchfleet/parts").iterdir():
        part.rename(tmp_path / part.name)  # as if it were another disk's
    second = await start()

    assert is_the_body((await results_of(batch))[0], second)

    assert [range_of(seen) for seen in origin.requests] == [None, None]


async def _stalls(x: Exchange) -> None:
    await x.send_head(200, [*ETAG, ("Content-Length", str(len(BODY)))])
    await x.send(BODY[:BREAK])
    await asyncio.Event().wait()


async def test_a_checkpoint_is_noted_while_a_body_streams(origin: Origin, start: Start) -> None:
    """What is claimed names so many bytes as are on disk, and costs no attempt."""
    worker = await start(timings=tuned(checkpoint_bytes=1 << 20))
    origin.behaviour = _stalls
    batch = await worker.submit([origin.url()])
    redis: Any = worker.runtime.redis

    async def noted() -> PartialNote | None:
        elements = await redis.hvals(keys.claimed(lane_of_url(origin.url())))
        return parse_entry(elements[0]).part if elements else None

    note = await wait_until(noted, "a checkpoint")
    [part] = (worker.out / ".fetchfleet/parts").iterdir()
    await batch.cancel()
    await results_of(batch)

    assert note is not None
    assert (note.etag, note.total_bytes) == ('"one"', len(BODY))
    assert 1 << 20 <= note.offset_bytes <= BREAK
    assert part.name.endswith(f".{note.token}")


async def test_halves_that_are_wanted_no_more_are_removed_off_the_loop(
    origin: Origin, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gigabytes take a while: of a changed body, of one that failed, and of one that is elsewhere now."""
    on_the_loop: list[bool] = []
    drop = Directory.drop

    def noted(self: Directory, part: str) -> None:
        if (worker.out / PARTIAL_FILES / part).exists():
            on_the_loop.append(threading.current_thread() is threading.main_thread())
        drop(self, part)

    monkeypatch.setattr(Directory, "drop", noted)
    worker = await start(policy={"attempts": 2})
    half, changed = Ranged(BODY, breaks=[BREAK]), Ranged(BODY[::-1], [("ETag", '"two"')])
    routes: dict[str, Behaviour] = {
        "/changed": o.sequence(half, changed),
        "/fails": Ranged(BODY, breaks=[BREAK, 10]),
        "/moves": o.sequence(Ranged(BODY, breaks=[BREAK]), o.redirect("/new")),
        "/new": o.ok(BODY),
    }
    origin.behaviour = o.by_path(routes)

    results = [await worker.one(origin.url(path)) for path in routes]

    stored = Outcome.STORED
    assert [result.outcome for result in results] == [stored, Outcome.FAILED, stored, stored]
    await wait_until(lambda: not worker.parts(), "the parts' end")
    assert on_the_loop == [False] * 3
