"""Segments: a large body arrives in several ranges at once, within the limits of its host."""

import asyncio
import base64
import errno
import hashlib
import io
import os
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from rich.console import Console, RenderableType

from fetchfleet import Outcome, Reason, Result
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.urls import lane_of_url
from fetchfleet.worker.cli import render
from fetchfleet.worker.inspect.explain import LaneExplained, explain_lane
from fetchfleet.worker.inspect.fleet_status import fleet_status
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import LanePolicy, Range, Timeouts
from fetchfleet.worker.runtime.timings import WorkerTimings
from tests.component.conftest import HOST, Start, on_both_engines, tuned
from tests.support.range_server import RangedBody, RangeResponse, body_of, range_of, span_of
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.judge import closer_than, most_at_once
from tools.origin.server import Behaviour, Exchange, Origin

PIECE = 64 * 1024
BODY = body_of(3_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
FIRST = f"bytes=0-{PIECE - 1}"
FOUR = {"concurrency": 4, "segments": 4}


@pytest.fixture
def timings() -> WorkerTimings:
    """Return timings with pieces that are small enough for a test."""
    return tuned(piece_bytes=PIECE, checkpoint_bytes=1 << 20)


def is_the_body(result: Result, worker: OneWorker) -> bool:
    """Return whether the stored file is the body, after checking that no other file exists."""
    assert (result.outcome, result.bytes, result.sha256) == (Outcome.STORED, len(BODY), SHA256), result
    assert worker.files() == {result.path}
    assert not worker.parts()
    return worker.body(result) == BODY


class Gathering(RangedBody):
    """Serves ranges, but sends no content until `at_once` requests have arrived."""

    def __init__(self, at_once: int) -> None:
        super().__init__(BODY)
        self._missing = at_once
        self._all_here = asyncio.Event()

    async def __call__(self, x: Exchange) -> None:
        """Send a head, wait for the others, then send the content."""
        self._missing -= 1
        if not self._missing:
            self._all_here.set()
        status, headers, content = self._response(x)
        await x.send_head(status, [*headers, ("Content-Length", str(len(content)))])
        await self._all_here.wait()
        await x.send(content)


class OnFurther(RangedBody):
    """Serves ranges, but applies `behaviour` to the first `times` that do not begin at 0.

    The content of the first piece waits for the end of the first of these.
    """

    def __init__(self, behaviour: Behaviour, times: int = 1) -> None:
        super().__init__(BODY)
        self._behaviour = behaviour
        self._left = times
        self._applied = asyncio.Event()

    def go(self) -> None:
        """Send the content of the first piece."""
        self._applied.set()

    async def __call__(self, x: Exchange) -> None:
        """Respond to one request."""
        if span_of(x.request)[0] == 0:
            status, headers, content = self._response(x)
            await x.send_head(status, [*headers, ("Content-Length", str(len(content)))])
            await self._applied.wait()
            await x.send(content)
        elif self._left:
            self._left -= 1
            try:
                await self._behaviour(x)
            finally:
                self._applied.set()
        else:
            await super().__call__(x)


@on_both_engines
async def test_a_body_arrives_in_as_many_ranges_at_once_as_its_fetch_allows(
    origin: Origin, start: Start
) -> None:
    """The first piece does not wait for the others. The ranges cover the body exactly once."""
    worker = await start()
    origin.behaviour = Gathering(4)

    result = await worker.one(origin.url(), segments=4, sha256=SHA256)

    assert is_the_body(result, worker)
    assert most_at_once(origin.requests) == 4
    spans = sorted(span_of(seen) for seen in origin.requests)
    assert [end for _, end in spans[:-1]] == [first for first, _ in spans[1:]]
    assert (spans[0][0], spans[-1][1]) == (0, len(BODY))
    assert {Origin.header(seen, "If-Range") for seen in origin.requests[1:]} == {'"one"'}
    assert (result.status, result.attempts, result.interruptions) == (206, 1, 0)


async def test_one_connection_serves_several_pieces(origin: Origin, worker: OneWorker) -> None:
    """Each request ends with its range, so that no connection is closed."""
    origin.behaviour = RangedBody(BODY)

    assert is_the_body(await worker.one(origin.url(), segments=3), worker)

    assert len({seen.connection for seen in origin.requests}) <= 3 < len(origin.requests)
    assert not [seen for seen in origin.requests if seen.aborted]


@pytest.mark.parametrize(
    ("policy", "fetch", "at_once"),
    [
        ({"concurrency": 2}, {"segments": 8}, 2),
        ({"concurrency": 1}, {"segments": 8}, 1),
        ({"concurrency": 8, "segments": 3}, {}, 3),
        ({"concurrency": 8, "segments": 3}, {"segments": 2}, 2),
        ({"concurrency": Range(min=2, max=2), "segments": 8}, {}, 2),
    ],
)
async def test_the_ranges_at_once_never_exceed_the_concurrency_of_the_host(
    origin: Origin, start: Start, policy: dict[str, Any], fetch: dict[str, Any], at_once: int
) -> None:
    """The origin sees exactly as many as fetch, policy and gate allow."""
    worker = await start(policy=policy)
    origin.behaviour = Gathering(at_once)

    assert is_the_body(await worker.one(origin.url(), **fetch), worker)

    assert most_at_once(origin.requests) == at_once


async def test_the_slots_of_the_worker_limit_the_ranges_at_once(origin: Origin, start: Start) -> None:
    """Each range occupies a slot of the process."""
    worker = await start(policy={"concurrency": 8}, max_in_flight=2)
    origin.behaviour = Gathering(2)

    assert is_the_body(await worker.one(origin.url(), segments=8), worker)

    assert most_at_once(origin.requests) == 2


async def test_several_segmented_bodies_share_the_concurrency(origin: Origin, start: Start) -> None:
    """The places that no fetch needs are shared by their further pieces."""
    worker = await start(policy=FOUR)
    origin.behaviour = Gathering(4)

    results = await worker.results([origin.url(f"/{number}") for number in range(3)])

    assert [(result.outcome, result.sha256) for result in results] == [(Outcome.STORED, SHA256)] * 3
    assert most_at_once(origin.requests) == 4


async def test_a_waiting_fetch_gets_the_next_place(origin: Origin, start: Start) -> None:
    """A further piece leaves its place to a fetch that was submitted during the transfer."""
    worker = await start(policy={"concurrency": 2, "segments": 2})
    ranged, held, go = RangedBody(BODY), asyncio.Event(), asyncio.Event()

    async def holds(x: Exchange) -> None:
        held.set()
        await go.wait()
        await ranged(x)

    origin.behaviour = o.by_path({"/large": OnFurther(holds), "/small": o.OK})
    batch = await worker.submit([origin.url("/large")])
    await held.wait()
    small = await worker.submit([origin.url("/small")])
    [lane] = worker.runtime.lanes.values()
    await wait_until(lambda: lane.ready, "the small fetch to be claimed")
    go.set()

    assert [result.outcome for result in await results_of(small)] == [Outcome.STORED]
    assert "/small" in [seen.target for seen in origin.requests[2:4]]
    assert [result.sha256 for result in await results_of(batch)] == [SHA256]
    assert most_at_once(origin.requests) == 2


@pytest.mark.parametrize("fields", [{"segments": 1}, {"headers": {"Range": "bytes=5-9"}}, {"method": "POST"}])
async def test_these_fetches_are_not_split(origin: Origin, start: Start, fields: dict[str, Any]) -> None:
    """They send one request, as without the key in the policy."""
    worker = await start(policy=FOUR)
    origin.behaviour = o.ok(BODY)

    await worker.one(origin.url(), **fields)

    assert [range_of(seen) for seen in origin.requests] == [fields.get("headers", {}).get("Range")]


@pytest.mark.parametrize("settings", [{"sink": "warc"}, {"policy": {**FOUR, "http2": True}}])
async def test_a_warc_sink_and_a_host_with_http2_have_whole_responses(
    origin: Origin, start: Start, settings: dict[str, Any]
) -> None:
    """A record has one response, as it was sent. Streams of HTTP/2 share a connection anyway."""
    worker = await start(**{"policy": FOUR, **settings})
    origin.behaviour = RangedBody(BODY)

    result = await worker.one(origin.url())

    assert (result.status, result.sha256) == (200, SHA256)
    assert [range_of(seen) for seen in origin.requests] == [None]


async def test_a_host_that_ignores_ranges_sends_the_body_once(origin: Origin, worker: OneWorker) -> None:
    """Its 200 is received on one connection."""
    origin.behaviour = o.ok(BODY)

    result = await worker.one(origin.url(), segments=4)

    assert is_the_body(result, worker)
    assert ([range_of(seen) for seen in origin.requests], result.status) == ([FIRST], 200)


async def test_a_body_of_one_piece_takes_one_request(origin: Origin, worker: OneWorker) -> None:
    """It needs no validator, as nothing is joined."""
    origin.behaviour = RangedBody(BODY[:PIECE], headers=[])

    result = await worker.one(origin.url(), segments=4)

    assert worker.body(result) == BODY[:PIECE]
    assert [range_of(seen) for seen in origin.requests] == [FIRST]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (BODY, []),
        (BODY, [("ETag", 'W/"one"')]),
        (BODY, [("ETag", '"one"'), ("Accept-Ranges", "none")]),
        (b"", []),
    ],
    ids=["no-validator", "weak-etag", "no-ranges", "empty"],
)
async def test_a_body_that_cannot_be_split_is_requested_whole_at_once(
    origin: Origin, worker: OneWorker, body: bytes, headers: list[tuple[str, str]]
) -> None:
    """The first response is dropped, and no attempt is charged."""
    origin.behaviour = RangedBody(body, headers)

    result = await worker.one(origin.url(), segments=4)

    assert (result.outcome, result.status, worker.body(result)) == (Outcome.STORED, 200, body)
    assert [range_of(seen) for seen in origin.requests] == [FIRST, None]
    assert (result.attempts, result.interruptions) == (1, 0)


async def test_under_a_rate_limit_a_body_that_cannot_be_split_is_requested_once_more(
    origin: Origin, start: Start
) -> None:
    """The second request waits for the rate limit as a second attempt, and is not another first piece."""
    worker = await start(policy={**FOUR, "rate_per_s": 20})
    origin.behaviour = RangedBody(BODY, headers=[])

    assert is_the_body(await worker.one(origin.url()), worker)

    assert [range_of(seen) for seen in origin.requests] == [FIRST, None]


async def test_a_rate_limit_applies_to_each_range(origin: Origin, start: Start) -> None:
    """The judge is the origin. A wait that is short occupies the slot."""
    worker = await start(policy={**FOUR, "rate_per_s": 40}, timings=tuned(piece_bytes=PIECE * 4))
    origin.behaviour = RangedBody(BODY)

    result = await worker.one(origin.url())

    assert is_the_body(result, worker)
    assert not closer_than(origin.requests, 1 / 40, 1, slack_s=0.02)


def other_version(first: int, total: int) -> RangeResponse:
    """Return a range of another version."""
    sent = ("Content-Range", f"bytes {first}-{total - 1}/{total}")
    return 206, [sent, ("ETag", '"two"')], BODY[::-1][first:]


def wrong(content_range: str) -> Callable[[Exchange], Any]:
    """Send as many bytes as requested, with this Content-Range; names are replaced by numbers."""

    async def respond(x: Exchange) -> None:
        first, end = span_of(x.request)
        numbers = {"first": first, "before": first - 1, "last": end - 1, "less": end - 2, "total": len(BODY)}
        sent = ("Content-Range", content_range.format(**numbers, more=len(BODY) + 1))
        await x.respond(206, [sent, ("ETag", '"one"')], bytes(end - first))

    return respond


MISFITS: dict[str, Behaviour] = {
    "/another-version": RangedBody(BODY[::-1], [("ETag", '"two"')], respond_to_range=other_version),
    "/whole": o.ok(BODY[::-1], [("ETag", '"two"')]),
    "/start": wrong("bytes {before}-{less}/{total}"),
    "/end": wrong("bytes {first}-{less}/{total}"),
    "/total": wrong("bytes {first}-{last}/{more}"),
    "/unknown-total": wrong("bytes {first}-{last}/*"),
    "/none": wrong("{first}"),
    "/416": o.status(416, [("Content-Range", "bytes */9")]),
    "/redirect": o.redirect("/elsewhere"),
}


async def test_a_range_that_does_not_fit_is_never_joined(origin: Origin, worker: OneWorker) -> None:
    """The fetch's own request meets it too, so the next attempt requests the whole body, uncharged."""
    origin.behaviour = o.by_path({path: OnFurther(misfit, 1000) for path, misfit in MISFITS.items()})

    for path in MISFITS:
        result = await worker.one(origin.url(path), segments=4)

        assert (result.sha256, result.status, result.attempts, result.interruptions) == (SHA256, 200, 1, 1)
        assert worker.body(result) == BODY
        assert (origin.requests[-1].target, range_of(origin.requests[-1])) == (path, None)
    assert not worker.parts()


async def test_after_one_range_that_does_not_fit_the_fetch_requests_it_again(
    origin: Origin, worker: OneWorker
) -> None:
    """Fewer ranges follow at once."""
    origin.behaviour = o.by_path({path: OnFurther(misfit) for path, misfit in MISFITS.items()})

    for path in MISFITS:
        before = len(origin.requests)
        result = await worker.one(origin.url(path), segments=2)

        assert (result.sha256, result.status, result.attempts, result.interruptions) == (SHA256, 206, 1, 0)
        assert worker.body(result) == BODY
        assert most_at_once(origin.requests[before + 2 :]) == 1
    assert not worker.parts()


async def test_a_changed_body_replaces_all_pieces(origin: Origin, worker: OneWorker) -> None:
    """It changes during the transfer, and its pieces are not mixed."""
    other = RangedBody(BODY[::-1], [("ETag", '"two"')])
    origin.behaviour = o.sequence(*[RangedBody(BODY)] * 5, other)

    result = await worker.one(origin.url(), segments=3)

    assert worker.body(result) == BODY[::-1]
    assert (result.outcome, result.attempts) == (Outcome.STORED, 1)
    assert not worker.parts()


async def test_a_failed_further_range_charges_nothing_and_lowers_the_ranges_at_once(
    origin: Origin, start: Start
) -> None:
    """The fetch requests the rest of that piece itself."""
    worker = await start(policy={**FOUR, "breaker_failures": 100})
    cut = RangedBody(BODY, breaks=[40_000] * 3)
    troubles: list[Behaviour] = [o.status(500), o.status(503), o.status(404), cut]
    origin.behaviour = o.by_path({f"/{n}": OnFurther(trouble, 3) for n, trouble in enumerate(troubles)})

    for number in range(len(troubles)):
        before = len(origin.requests)
        result = await worker.one(origin.url(f"/{number}"))

        assert (result.sha256, result.attempts, result.interruptions) == (SHA256, 1, 0)
        assert most_at_once(origin.requests[before + 4 :]) == 1
    assert not worker.parts()


async def test_a_cut_range_continues_where_it_broke_off(origin: Origin, worker: OneWorker) -> None:
    """No byte that was written is requested again."""
    cut = RangedBody(BODY, breaks=[40_000])
    origin.behaviour = OnFurther(cut)

    assert is_the_body(await worker.one(origin.url(), segments=2), worker)

    assert PIECE + 40_000 in {span_of(seen)[0] for seen in origin.requests}


async def test_a_429_for_a_further_range_cools_the_host_down(origin: Origin, start: Start) -> None:
    """Ranges in flight end, none starts in the cool-down, and the rest comes on one connection.

    The requests of the first moment may have been sent before the 429 arrived.
    """
    worker = await start(policy=FOUR)
    origin.behaviour = OnFurther(o.retry_after(1.2))

    result = await worker.one(origin.url())

    assert is_the_body(result, worker)
    [(from_s, until_s)] = origin.windows
    assert not [seen for seen in origin.requests if from_s + 0.2 < seen.arrived_s < until_s]
    assert (result.attempts, result.throttles, result.interruptions) == (1, 0, 1)
    again = [seen for seen in origin.requests if seen.arrived_s >= until_s]
    assert most_at_once(again) == 1


async def test_a_host_that_serves_one_at_a_time_refuses_one_round_of_further_ranges(
    origin: Origin, start: Start
) -> None:
    """For a minute after the cool-down, the fetch has one request at a time."""
    worker = await start(policy={**FOUR, "throttle_cap_s": 0.05}, timings=tuned(piece_bytes=200_000))
    one = RangedBody(BODY)
    running = refused = 0

    async def one_at_a_time(x: Exchange) -> None:
        nonlocal running, refused
        if running:
            refused += 1
            await x.respond(429)
            return
        running += 1
        try:
            await (first if span_of(x.request)[0] == 0 else one)(x)
        finally:
            running -= 1

    first = OnFurther(o.OK)
    refusals = asyncio.create_task(wait_until(lambda: refused == 3, "three refusals"))
    refusals.add_done_callback(lambda _: first.go())
    origin.behaviour = one_at_a_time

    result = await worker.one(origin.url())

    assert is_the_body(result, worker)
    assert (refused, result.attempts, result.throttles) == (3, 1, 0)


async def test_adaptive_concurrency_learns_from_further_ranges(origin: Origin, start: Start) -> None:
    """A host that serves two at once gets fewer ranges, and the body."""
    worker = await start(policy={"concurrency": Range(min=1, max=8), "segments": 8, "throttle_cap_s": 0.05})
    ranged, running = RangedBody(BODY), 0

    async def two_at_once(x: Exchange) -> None:
        nonlocal running
        if running == 2:
            await x.respond(429)
            return
        running += 1
        try:
            await ranged(x)
        finally:
            running -= 1

    origin.behaviour = two_at_once

    result = await worker.one(origin.url())

    assert is_the_body(result, worker)
    assert result.attempts == 1


async def test_a_failed_own_range_charges_an_attempt_and_resumes(origin: Origin, start: Start) -> None:
    """With one place, every request is the fetch's own."""
    worker = await start(policy={"concurrency": 1, "segments": 4}, timings=tuned(piece_bytes=PIECE * 4))
    origin.behaviour = o.sequence(*[RangedBody(BODY)] * 3, o.status(500), RangedBody(BODY))

    result = await worker.one(origin.url())

    assert is_the_body(result, worker)
    assert result.attempts == 2
    before, failed, after = (span_of(seen)[0] for seen in origin.requests[2:5])
    assert before < failed == after


async def test_a_stopped_worker_leaves_the_start_of_the_body_to_the_next(
    origin: Origin, start: Start
) -> None:
    """The next attempt is split too, and requests at most the pieces in flight again."""
    first = await start(grace_s=0.1, policy=FOUR)
    ranged, stall = RangedBody(BODY), asyncio.Event()

    async def stalls_at_the_end(x: Exchange) -> None:
        if span_of(x.request)[0] > 2_000_000 and not stall.is_set():
            await asyncio.Event().wait()
        await ranged(x)

    origin.behaviour = stalls_at_the_end
    batch = await first.submit([origin.url()])
    received = first.runtime.services.sink.disk
    await wait_until(lambda: received.received_bytes > 2_000_000, "most of the body")
    await first.stop()
    stall.set()
    before = len(origin.requests)
    second = await start(worker_id="two", policy=FOUR)

    [result] = await results_of(batch)

    assert is_the_body(result, second)
    assert (result.attempts, result.interruptions, result.worker) == (1, 1, "two")
    again = [span_of(seen) for seen in origin.requests[before:]]
    assert sum(end - at for at, end in again) < 1_000_000 + 4 * 4 * PIECE
    assert all(at > 0 for at, _ in again)


async def test_a_checkpoint_notes_the_bytes_before_the_first_missing_one(
    origin: Origin, start: Start
) -> None:
    """Bytes behind a gap are not counted, so that older workers can take the file over."""
    worker = await start(policy=FOUR, timings=tuned(piece_bytes=PIECE, checkpoint_bytes=600_000))
    gap = asyncio.Event()

    async def gap_at_one_million(x: Exchange) -> None:
        at, end = span_of(x.request)
        if at <= 1_000_000 < end:
            await gap.wait()
        await RangedBody(BODY)(x)

    origin.behaviour = gap_at_one_million
    batch = await worker.submit([origin.url()])
    redis: Any = worker.runtime.redis
    claimed = keys.claimed(lane_of_url(origin.url()))

    async def noted() -> int | None:
        elements = await redis.hvals(claimed)
        [lane] = worker.runtime.lanes.values() or [None]
        part = next((entry.part for entry in lane.entries.values()), None) if lane else None
        return part.offset_bytes if elements and part else None

    offset_bytes = await wait_until(noted, "a checkpoint")
    [part] = (worker.out / ".fetchfleet/parts").iterdir()
    start_of_file = part.read_bytes()[:offset_bytes]
    gap.set()

    assert [result.sha256 for result in await results_of(batch)] == [SHA256]
    assert 512 * 1024 <= (offset_bytes or 0) <= 1_000_000
    assert start_of_file == BODY[:offset_bytes]


async def test_commands_show_the_ranges_of_a_host(origin: Origin, start: Start, redis: Redis) -> None:
    """The place that each takes under the concurrency, beside the fetch itself. Another fetch waits."""
    worker = await start(policy=FOUR)
    origin.behaviour = Gathering(1000)
    batch = await worker.submit([origin.url()])
    await wait_until(lambda: len(origin.requests) == 4, "four requests")
    waiting = await worker.submit([origin.url("/next")])
    explained: list[LaneExplained] = []

    async def is_reported() -> bool:
        explained[:] = [await explain_lane(redis, Policy(LanePolicy(concurrency=4)), HOST)]
        return explained[0].ranges == 3

    await wait_until(is_reported, "a report with the ranges")
    [line, counts, *_] = render.lane_lines(explained[0])
    text = "4 of 4 in flight (1 fetch, 3 further ranges)"
    assert line == f"{HOST}: busy; {text}, the concurrency limit"
    assert counts.startswith(f"1 waiting, {text}, held by ")
    status = await fleet_status(redis)
    [lane] = status.lanes
    assert (lane.in_flight, lane.ranges, lane.waiting, lane.full) == (1, 3, 1, True)
    assert "1 + 3 ranges" in shown(render.status_of(status))
    await asyncio.gather(batch.cancel(), waiting.cancel())
    assert [result.outcome for result in await results_of(batch)] == [Outcome.CANCELLED]


def shown(renderable: RenderableType) -> str:
    """Return the text of a part of a command's output."""
    screen = io.StringIO()
    Console(file=screen, width=100).print(renderable)
    return screen.getvalue()


async def test_a_cancelled_fetch_ends_its_ranges(origin: Origin, start: Start) -> None:
    """No task, request or file is left."""
    worker = await start(policy=FOUR)
    origin.behaviour = Gathering(1000)
    batch = await worker.submit([origin.url()])
    await wait_until(lambda: len(origin.requests) == 4, "four requests")
    [lane] = worker.runtime.lanes.values()

    await batch.cancel()

    assert [result.outcome for result in await results_of(batch)] == [Outcome.CANCELLED]
    await wait_until(lambda: not worker.runtime.lanes, "the lane to be released")
    assert (lane.ranges, _tasks("piece of")) == (0, [])
    assert not worker.files() | worker.parts()


async def test_a_lost_lane_ends_its_ranges(origin: Origin, start: Start) -> None:
    """Another worker may write to its own file meanwhile."""
    worker = await start(policy=FOUR)
    origin.behaviour = Gathering(1000)
    batch = await worker.submit([origin.url()])
    await wait_until(lambda: len(origin.requests) == 4, "four requests")
    [lane] = worker.runtime.lanes.values()

    lane.lose()
    await wait_until(lambda: not lane.in_flight, "the fetch to stop")

    assert (lane.ranges, _tasks("piece of")) == (0, [])
    await batch.cancel()


async def test_the_time_limit_of_the_attempt_applies_to_all_ranges(origin: Origin, start: Start) -> None:
    """The next attempt has the rest."""
    limits = Timeouts(connect_s=5, read_s=5, write_s=5, pool_s=5, total_s=0.5)
    worker = await start(policy={**FOUR, "timeout": limits})
    origin.behaviour = OnFurther(o.latency(3600), times=3)

    result = await worker.one(origin.url())

    assert is_the_body(result, worker)
    assert result.attempts == 2


async def test_a_body_above_the_size_limit_ends_with_its_first_response(
    origin: Origin, worker: OneWorker
) -> None:
    """The Content-Range has the length of the whole."""
    origin.behaviour = RangedBody(BODY)

    result = await worker.one(origin.url(), segments=4, max_bytes=len(BODY) - 1)

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.TOO_LARGE)
    assert len(origin.requests) == 1
    assert not worker.files() | worker.parts()


async def test_a_disk_that_refuses_a_further_piece_charges_nothing(
    origin: Origin, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt ends, and the next one has the whole body."""
    worker = await start(policy=FOUR, timings=tuned(piece_bytes=PIECE, disk_pause_s=0.02))
    pwritev = os.pwritev
    failed: list[int] = []

    def fails_once(file: int, blocks: list[bytes], at: int) -> int:
        if at > 1_000_000 and not failed:
            failed.append(at)
            raise OSError(errno.ENOSPC, "no space")
        return pwritev(file, blocks, at)

    monkeypatch.setattr(os, "pwritev", fails_once)
    origin.behaviour = RangedBody(BODY)

    result = await worker.one(origin.url())

    assert is_the_body(result, worker)
    assert (result.attempts, result.interruptions) == (1, 1)


@pytest.mark.parametrize("right", [True, False])
async def test_the_digest_of_the_host_is_that_of_the_whole_body(
    origin: Origin,
    start: Start,
    right: bool,  # noqa: FBT001
) -> None:
    """Repr-Digest of the first response is checked; another digest fails the fetch."""
    worker = await start(policy={**FOUR, "attempts": 1})
    digest = hashlib.sha512(BODY if right else b"").digest()
    field = ("Repr-Digest", f"sha-512=:{base64.b64encode(digest).decode()}:")
    origin.behaviour = RangedBody(BODY, [("ETag", '"one"'), field])

    result = await worker.one(origin.url())

    assert result.reason is (None if right else Reason.DIGEST_MISMATCH)
    assert len(worker.files()) == right
    assert not worker.parts()


async def test_an_unchanged_body_costs_one_request(origin: Origin, worker: OneWorker) -> None:
    """The condition takes precedence over the range (RFC 9110 §13.2.2)."""
    origin.behaviour = o.sequence(o.status(304, [("ETag", '"one"')]))

    result = await worker.one(origin.url(), segments=4, etag='"one"')

    assert (result.outcome, len(origin.requests)) == (Outcome.UNCHANGED, 1)


def _tasks(name: str) -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith(name)]
