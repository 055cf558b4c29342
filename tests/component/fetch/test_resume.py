"""Resuming: an interrupted body continues where it stopped, and matches the host's byte for byte."""

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
from tests.component.conftest import Start, on_both_sinks, tuned
from tests.support.range_server import RangedBody, RangeResponse, body_of, range_of
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
    """Return whether the stored file is the body, after checking that no other file exists."""
    assert (result.outcome, result.bytes, result.sha256) == (Outcome.STORED, len(BODY), SHA256), result
    assert worker.files() == {result.path}
    assert not worker.parts()
    return worker.body(result) == BODY


@on_both_sinks
@pytest.mark.parametrize("headers", [ETAG, OLD], ids=["etag", "last-modified"])
async def test_an_interrupted_body_resumes_where_it_stopped(
    origin: Origin, worker: OneWorker, headers: list[Header]
) -> None:
    """It resumes after each interruption, with If-Range. Each costs an attempt."""
    origin.behaviour = ranged = RangedBody(BODY, headers, [BREAK, 1_000_000])

    result = await worker.one(origin.url())

    assert is_the_body(result, worker)
    stopped = [BREAK, BREAK + 1_000_000]
    assert [range_of(seen) for seen in origin.requests] == [None, *(f"bytes={at}-" for at in stopped)]
    assert [Origin.header(seen, "If-Range") for seen in origin.requests] == [None, *[headers[0][1]] * 2]
    assert {Origin.header(seen, "Accept-Encoding") for seen in origin.requests} == {"identity"}
    assert ranged.sent_bytes == [len(BODY), *(len(BODY) - at for at in stopped)]
    assert (result.status, result.attempts, result.interruptions) == (206, 3, 0)


async def test_a_body_resumes_after_a_reset(origin: Origin, worker: OneWorker) -> None:
    """Bytes in flight are lost. The range begins after the received ones."""
    origin.behaviour = RangedBody(BODY, breaks=[2_500_000], ends=Exchange.abort)

    assert is_the_body(await worker.one(origin.url(), sha256=SHA256), worker)

    assert len(origin.requests) == 2


async def test_a_body_resumes_after_a_timeout(origin: Origin, start: Start) -> None:
    """The first attempt stalls until its total timeout."""
    limits = Timeouts(connect_s=5, read_s=5, write_s=5, pool_s=5, total_s=4)
    worker = await start(policy={"timeout": limits})
    whole = RangedBody(BODY)

    async def stalls(x: Exchange) -> None:
        await x.send_head(200, [*ETAG, ("Content-Length", str(len(BODY)))])
        await x.send(BODY[:BREAK])
        await asyncio.Event().wait()

    origin.behaviour = o.sequence(stalls, whole)

    assert is_the_body(await worker.one(origin.url()), worker)

    assert range_of(origin.requests[1]) is not None


@pytest.mark.parametrize("headers", [[], [("ETag", 'W/"one"')], [("Last-Modified", OLD[1][1]), OLD[1]]])
async def test_without_a_strong_validator_a_body_starts_from_0(
    origin: Origin, worker: OneWorker, headers: list[Header]
) -> None:
    """The rest could be of another version. A Last-Modified equal to Date is weak (RFC 9110 §8.8.2.2)."""
    origin.behaviour = RangedBody(BODY, headers, [BREAK])

    assert is_the_body(await worker.one(origin.url()), worker)

    assert [range_of(seen) for seen in origin.requests] == [None, None]


async def test_a_small_partial_body_starts_from_0(origin: Origin, worker: OneWorker) -> None:
    """A partial body below 512 KiB is not kept."""
    origin.behaviour = RangedBody(BODY, breaks=[400_000])

    assert is_the_body(await worker.one(origin.url()), worker)

    assert [range_of(seen) for seen in origin.requests] == [None, None]


@on_both_sinks
async def test_a_changed_body_replaces_the_partial_one(origin: Origin, worker: OneWorker) -> None:
    """The host responds to the range request with 200, because If-Range does not match."""
    other = body_of(2_000_000)[::-1]
    origin.behaviour = o.sequence(RangedBody(BODY, breaks=[BREAK]), RangedBody(other, [("ETag", '"two"')]))

    result = await worker.one(origin.url())

    assert worker.body(result) == other
    assert (result.status, result.attempts, len(origin.requests)) == (200, 2, 2)
    assert not worker.parts()


def range_response(status: int, content_range: str, *headers: Header) -> Callable[[int, int], RangeResponse]:
    """Return a `respond_to_range` with this response; the names in content_range are replaced by numbers."""

    def respond_to_range(start: int, total: int) -> RangeResponse:
        numbers = {"start": start, "before": start - 1, "last": total - 1, "total": total, "more": total + 1}
        content = BODY[start:] if status == 206 else b""
        return status, [("Content-Range", content_range.format(**numbers)), *headers], content

    return respond_to_range


@pytest.mark.parametrize(
    "respond_to_range",
    [
        range_response(206, "bytes {before}-{last}/{total}"),
        range_response(206, "bytes {start}-{last}/{more}"),
        range_response(206, "bytes {start}-{last}/{total}", ("ETag", '"two"')),
        range_response(206, "bytes {start}-{last}/{total}", ("ETag", 'W/"one"')),
        range_response(206, "", ("Content-Type", "multipart/byteranges; boundary=x")),
        range_response(416, "bytes */{total}"),
        range_response(416, "bytes */{more}"),
    ],
    ids=["start", "total", "etag", "weak", "multipart", "416", "416-longer"],
)
async def test_a_range_response_that_does_not_fit_is_never_appended(
    origin: Origin, worker: OneWorker, respond_to_range: Callable[[int, int], RangeResponse]
) -> None:
    """The body is requested from 0 at once, within the same attempt."""
    origin.behaviour = RangedBody(BODY, breaks=[BREAK], respond_to_range=respond_to_range)

    result = await worker.one(origin.url())

    assert is_the_body(result, worker)
    assert [range_of(seen) for seen in origin.requests] == [None, f"bytes={BREAK}-", None]
    assert result.attempts == 2


RANGE = "bytes=3-1000000"
OF_THE_CALLER = {"Range": RANGE}
ANEW = [None, f"bytes={BREAK}-", None]

CURLS: list[tuple[dict[str, str], int, str, tuple[Outcome, int], list[str | None]]] = [
    # the caller's headers, the response's status and Content-Range; the result, the requested ranges
    (OF_THE_CALLER, 200, "", (Outcome.STORED, 200), [RANGE]),  # curl: ok, ok
    (OF_THE_CALLER, 200, "bytes 3/7", (Outcome.STORED, 200), [RANGE]),  # ok, ok
    (OF_THE_CALLER, 416, "", (Outcome.FAILED, 416), [RANGE]),  # ok, an error
    (OF_THE_CALLER, 416, "bytes */2", (Outcome.FAILED, 416), [RANGE]),  # ok, an error
    ({}, 200, "", (Outcome.STORED, 200), ANEW[:2]),  # a range error, a range error
    ({}, 200, "bytes 3/7", (Outcome.STORED, 200), ANEW[:2]),  # appended, appended
    ({}, 416, "", (Outcome.STORED, 200), ANEW),  # counted as whole, an error
    ({}, 416, "bytes */2", (Outcome.STORED, 200), ANEW),  # counted as whole, an error
]
"""The sixteen rows of curl's test 1156, two a line: without its --fail and with it.

A 4xx is always an error here, so both rows have the same result. The comments show curl's results. Unlike
curl, a fetch replaces a partial body that does not fit.
"""


@pytest.mark.parametrize(("headers", "status", "content_range", "ends", "requested"), CURLS)
async def test_ranges_and_resuming_as_in_curls_test_1156(
    origin: Origin,
    worker: OneWorker,
    headers: dict[str, str],
    status: int,
    content_range: str,
    ends: tuple[Outcome, int],
    requested: list[str | None],
) -> None:
    """A caller's own range is sent once. A partial body is resumed or replaced."""
    given = [("Content-Range", content_range)] if content_range else []
    content = BODY if status == 200 else b"body"

    async def caller(x: Exchange) -> None:
        await x.respond(status, given, content)

    ranged = RangedBody(BODY, breaks=[BREAK], respond_to_range=lambda *_: (status, given, content))
    origin.behaviour = caller if headers else ranged

    result = await worker.one(origin.url(), headers=headers)

    assert (result.outcome, result.status) == ends
    assert result.reason is (Reason.HTTP_STATUS if status == 416 and headers else None)
    assert [range_of(seen) for seen in origin.requests] == requested
    assert result.outcome is Outcome.FAILED or is_the_body(result, worker)
    assert not worker.parts()


@on_both_sinks
async def test_a_416_for_a_range_at_the_end_completes_the_body(origin: Origin, worker: OneWorker) -> None:
    """Only the last chunk was missing, so the stored length is the host's."""
    chunks = [BODY[at : at + 100_000] for at in range(0, len(BODY), 100_000)]

    async def without_end(x: Exchange) -> None:
        await x.send_head(200, [*ETAG, ("Transfer-Encoding", "chunked")])
        for chunk in chunks:
            await x.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        x.close()

    origin.behaviour = o.sequence(without_end, RangedBody(BODY))

    result = await worker.one(origin.url())

    assert is_the_body(result, worker)
    assert (result.status, result.attempts, len(origin.requests)) == (416, 2, 2)


async def test_a_416_that_completes_the_body_does_not_name_it(origin: Origin, worker: OneWorker) -> None:
    """Its Content-Type is that of an error page."""

    async def without_end(x: Exchange) -> None:
        await x.send_head(200, [*ETAG, ("Transfer-Encoding", "chunked")])
        await x.send(b"%x\r\n%b\r\n" % (len(BODY), BODY))
        x.close()

    page = [("Content-Range", f"bytes */{len(BODY)}"), ("Content-Type", "text/html")]
    origin.behaviour = o.sequence(without_end, o.status(416, page, b"no such range"))

    result = await worker.one(origin.url("/file"), name="{stem}{ext}")

    assert is_the_body(result, worker)
    assert (result.status, result.path) == (416, "file")


@on_both_sinks
async def test_a_partial_body_is_kept_across_error_responses(origin: Origin, worker: OneWorker) -> None:
    """Between the two parts the host responds with 503, 429 and 500."""
    rest = RangedBody(BODY)
    between = [o.status(503), o.retry_after(0.05), o.status(500)]
    origin.behaviour = o.sequence(RangedBody(BODY, breaks=[BREAK]), *between, rest)

    result = await worker.one(origin.url())

    assert is_the_body(result, worker)
    assert rest.sent_bytes == [len(BODY) - BREAK]


async def test_a_body_behind_a_redirect_resumes_at_the_target(origin: Origin, worker: OneWorker) -> None:
    """The redirecting URL is requested again, without a range."""
    ranged = RangedBody(BODY, breaks=[BREAK])
    origin.behaviour = o.by_path({"/from": o.redirect("/to"), "/to": ranged})

    assert is_the_body(await worker.one(origin.url("/from")), worker)

    asked = [(seen.target, range_of(seen)) for seen in origin.requests]
    assert asked == [("/from", None), ("/to", None), ("/from", None), ("/to", f"bytes={BREAK}-")]


@pytest.mark.parametrize(
    "fields", [{"method": "POST", "retry_unsafe": True}, {"headers": {"Range": "bytes=0-"}}]
)
async def test_a_post_or_a_request_with_a_range_starts_from_0(
    origin: Origin, worker: OneWorker, fields: dict[str, Any]
) -> None:
    """Only a GET without a caller's own Range is resumed."""
    origin.behaviour = RangedBody(BODY, breaks=[BREAK])

    result = await worker.one(origin.url(), **fields)

    assert worker.body(result) == BODY
    assert len({range_of(seen) for seen in origin.requests}) == 1


@on_both_sinks
async def test_a_failed_fetch_leaves_no_partial_file(origin: Origin, start: Start) -> None:
    """The partial body is removed after the last attempt."""
    worker = await start(policy={"attempts": 2})
    origin.behaviour = RangedBody(BODY, breaks=[BREAK, 10])

    result = await worker.one(origin.url())

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.TRUNCATED)
    assert not worker.files() | worker.parts()


async def test_a_range_response_longer_than_announced_is_discarded(origin: Origin, worker: OneWorker) -> None:
    """The next attempt starts from 0."""

    async def overlong(x: Exchange) -> None:
        last = len(BODY) - 1
        given = ("Content-Range", f"bytes {BREAK}-{last}/{len(BODY)}")
        await x.send_head(206, [given, *ETAG, ("Transfer-Encoding", "chunked")])
        await x.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))

    origin.behaviour = o.sequence(RangedBody(BODY, breaks=[BREAK]), overlong, RangedBody(BODY))

    result = await worker.one(origin.url())

    assert is_the_body(result, worker)
    assert [range_of(seen) for seen in origin.requests] == [None, f"bytes={BREAK}-", None]


@asynccontextmanager
async def waiting_with_partial_body(origin: Origin, worker: OneWorker) -> Any:
    """Yield a batch of one fetch that has a partial body and waits for its next attempt."""
    origin.behaviour = RangedBody(BODY, breaks=[BREAK])
    batch = await worker.submit([Fetch(url=origin.url())])
    later = keys.later(lane_of_url(origin.url()))
    await wait_until(lambda: worker.runtime.redis.exists(later), "a failed attempt", every_s=0.001)
    yield batch


@on_both_sinks
async def test_a_cancelled_fetch_leaves_no_partial_file(origin: Origin, start: Start) -> None:
    """It is cancelled while it waits for a retry in 3000 s."""
    worker = await start(policy={"retry_base_s": 3000, "retry_cap_s": 3000})
    async with waiting_with_partial_body(origin, worker) as batch:
        assert worker.parts()
        await batch.cancel()
        [result] = await results_of(batch)

    assert result.outcome is Outcome.CANCELLED
    await wait_until(lambda: not worker.parts(), "the partial file to be removed")


@on_both_sinks
async def test_a_stopped_worker_leaves_its_partial_body_to_the_next(origin: Origin, start: Start) -> None:
    """The stop counts as an interruption and costs no attempt."""
    first = await start(grace_s=0.1)
    origin.behaviour = o.sequence(_stalls, RangedBody(BODY))
    batch = await first.submit([origin.url()])
    await wait_until(lambda: first.runtime.services.sink.disk.received_bytes == BREAK, "half a body")
    await first.stop()
    second = await start(worker_id="two")

    [result] = await results_of(batch)

    assert is_the_body(result, second)
    assert [range_of(seen) for seen in origin.requests] == [None, f"bytes={BREAK}-"]
    assert (result.attempts, result.interruptions, result.worker) == (1, 1, "two")


@on_both_sinks
async def test_a_body_whose_partial_file_is_missing_starts_from_0(
    origin: Origin, start: Start, tmp_path: Path
) -> None:
    """The next worker may have another disk."""
    first = await start(grace_s=0.1)
    origin.behaviour = o.sequence(_stalls, RangedBody(BODY))
    batch = await first.submit([origin.url()])
    await wait_until(lambda: first.runtime.services.sink.disk.received_bytes == BREAK, "half a body")
    await first.stop()
    for part in (tmp_path / "out" / ".fetchfleet/parts").iterdir():
        part.rename(tmp_path / part.name)  # as if it were on another disk
    second = await start()

    assert is_the_body((await results_of(batch))[0], second)

    assert [range_of(seen) for seen in origin.requests] == [None, None]


async def _stalls(x: Exchange) -> None:
    await x.send_head(200, [*ETAG, ("Content-Length", str(len(BODY)))])
    await x.send(BODY[:BREAK])
    await asyncio.Event().wait()


@on_both_sinks
async def test_a_checkpoint_is_recorded_during_the_transfer(origin: Origin, start: Start) -> None:
    """The claimed entry notes how many bytes are synced to disk."""
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


async def test_unwanted_partial_files_are_removed_off_the_event_loop(
    origin: Origin, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removing gigabytes takes time. The body changed, its fetch failed, or the redirect leads elsewhere."""
    on_the_loop: list[bool] = []
    drop = Directory.drop

    def noted(self: Directory, part: str) -> None:
        if (worker.out / PARTIAL_FILES / part).exists():
            on_the_loop.append(threading.current_thread() is threading.main_thread())
        drop(self, part)

    monkeypatch.setattr(Directory, "drop", noted)
    worker = await start(policy={"attempts": 2})
    half, changed = RangedBody(BODY, breaks=[BREAK]), RangedBody(BODY[::-1], [("ETag", '"two"')])
    routes: dict[str, Behaviour] = {
        "/changed": o.sequence(half, changed),
        "/fails": RangedBody(BODY, breaks=[BREAK, 10]),
        "/moves": o.sequence(RangedBody(BODY, breaks=[BREAK]), o.redirect("/new")),
        "/new": o.ok(BODY),
    }
    origin.behaviour = o.by_path(routes)

    results = [await worker.one(origin.url(path)) for path in routes]

    stored = Outcome.STORED
    assert [result.outcome for result in results] == [stored, Outcome.FAILED, stored, stored]
    await wait_until(lambda: not worker.parts(), "the partial files to be removed")
    assert on_the_loop == [False] * 3
