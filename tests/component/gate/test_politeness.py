"""Politeness: limits and waits that are checked at the hosts."""

import asyncio
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from itertools import pairwise

import msgspec
import pytest
from redis.asyncio import Redis

from fetchfleet import Fetch, Fleet, Outcome, Reason
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.worker.lanes import settler
from tests.component.conftest import HOST, Lines, Start
from tests.support.origins import serve_origins
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Behaviour, Exchange, Origin, requests_inside

SLACK_S = 0.15
"""Requests in transit when a window begins do not count."""


def events(lines: Lines, event: str) -> Lines:
    """Return the log lines of one event."""
    return [line for line in lines if line["event"] == event]


async def test_a_host_sees_exactly_as_many_requests_at_once_as_its_concurrency(
    origin: Origin, start: Start
) -> None:
    """With 40 fetches in the lane the limit is reached and never exceeded."""
    worker = await start(policy={"concurrency": 3})
    origin.behaviour = o.latency(0.01)

    await worker.run(origin.url(f"/{n}") for n in range(40))

    assert len(origin.requests) == 40
    assert origin.high_water == 3


async def test_every_spelling_of_an_address_shares_its_concurrency(
    origin: Origin, fleet: Fleet, redis: Redis, start: Start, lines: Lines
) -> None:
    """It is the URL of a fetch or the target of a redirect, also in lanes of older versions."""
    spellings = [HOST, f"[::ffff:{HOST}]", "[::FFFF:7f00:b]", f"{HOST}.", HOST.replace(".", "。")]
    urls = [f"http://{host}:{origin.port}/{n}" for n in range(4) for host in spellings]
    old = [Fetch(url=origin.url(f"/old/{n}")) for n in range(8)]
    for fetch in old:
        msgspec.structs.force_setattr(fetch, "url", fetch.url.replace(HOST, f"[::ffff:{HOST}]"))
    led = o.redirect(f"http://[::ffff:7f00:b]:{origin.port}/led")
    origin.behaviour = o.by_path({"/old/0": led}, o.latency(0.01))

    batch = await fleet.submit(old)
    await redis.hdel(keys.batch(batch.id), "recorded")  # type: ignore[misc]
    await redis.delete(keys.record(batch.id))

    worker = await start(policy={"concurrency": 2})
    results = [*await worker.results(urls), *await results_of(batch)]

    assert len(results) == len(origin.requests) - 1 == 28
    assert {result.outcome for result in results} == {Outcome.STORED}
    assert origin.high_water == 2
    assert {line["lane"] for line in events(lines, "lane.taken")} == {HOST, f"::ffff:{HOST}"}
    assert {line["lane"] for line in events(lines, "fetch.finished")} == {HOST}


async def test_a_host_has_its_own_concurrency(origin: Origin, other: Origin, start: Start) -> None:
    """A host table of the policy applies to no other host."""
    worker = await start(policy={"concurrency": 4}, hosts={HOST: {"concurrency": 1}})
    origin.behaviour = other.behaviour = o.latency(0.01)

    await worker.run(place.url(f"/{n}") for n in range(15) for place in (origin, other))

    assert (origin.high_water, other.high_water) == (1, 4)


async def test_max_in_flight_limits_the_fetches_of_a_worker_over_all_lanes(
    origin: Origin, other: Origin, start: Start
) -> None:
    """The fetches of both lanes run in two slots."""
    worker = await start(max_in_flight=2)
    gauge = Gauge(o.latency(0.01))
    origin.behaviour = other.behaviour = gauge

    results = await worker.run(place.url(f"/{n}") for n in range(10) for place in (origin, other))

    assert gauge.high_water == 2
    assert {result.outcome for result in results.values()} == {Outcome.STORED}


@pytest.mark.parametrize(("code", "form"), [(403, "seconds"), (429, "date"), (503, "seconds"), (503, "date")])
async def test_no_request_is_sent_within_a_retry_after(
    origin: Origin, worker: OneWorker, code: int, form: str
) -> None:
    """The throttle is counted and charges no attempt."""
    wait = 1 if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
    origin.behaviour = o.sequence(*[o.retry_after(wait, code)] * 3, o.OK)

    results = await worker.results(origin.url(f"/{n}") for n in range(12))

    assert len(origin.windows) >= 1
    assert requests_inside(origin.windows, origin.requests, SLACK_S) == []
    assert {result.outcome for result in results} == {Outcome.STORED}
    assert {result.attempts for result in results} == {1}
    assert sum(result.throttles for result in results) == len(origin.windows)


def at_first(code: int, *values: str) -> Behaviour:
    """Respond once with a Retry-After on a line for each value, then with a body."""
    return o.sequence(o.status(code, [("Retry-After", value) for value in values]), o.OK)


async def in_iso_8601(x: Exchange) -> None:
    """Respond with a Retry-After that is an ISO 8601 time."""
    await x.respond(
        503, [("Retry-After", f"{datetime.now(UTC) + timedelta(seconds=0.5):%Y-%m-%dT%H:%M:%S.%fZ}")]
    )


async def test_every_form_of_retry_after_is_kept(start: Start) -> None:
    """Throttles and failures delay the next request by a second at least."""
    hosts = {
        "a fraction": at_first(429, "0.6"),
        "two lines": at_first(429, "0", "1"),
        "joined by a proxy": at_first(403, "soon, 1"),
        "ISO 8601": o.sequence(in_iso_8601, o.OK),
        "a failure": at_first(500, "1"),
        "a failure at a proxy": at_first(524, "0.6"),
        "425": at_first(425, "1"),
        "413": at_first(413, "1"),
    }
    worker = await start()
    served = {
        name: (f"127.0.0.{place}", behaviour) for place, (name, behaviour) in enumerate(hosts.items(), 40)
    }
    async with serve_origins(served) as origins:
        results = await worker.results(place.url("/") for place in origins.values())
    waits = {
        name: place.requests[-1].arrived_s - place.requests[0].finished_s for name, place in origins.items()
    }

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert dict.fromkeys(hosts, 2) == {name: len(place.requests) for name, place in origins.items()}
    assert [] == [name for name, wait_s in waits.items() if wait_s < 1]
    assert [(1, 1)] * 4 + [(2, 0)] * 4 == [(result.attempts, result.throttles) for result in results]


@pytest.mark.parametrize("asked", ["0", "Sun, 06 Nov 1994 08:49:37 GMT"])
async def test_a_503_that_asks_for_no_wait_is_a_failure(
    origin: Origin, start: Start, lines: Lines, asked: str
) -> None:
    """It charges an attempt and counts as no throttle. The breaker stops a host that sends it always."""
    soon = {"retry_base_s": 0.01, "retry_cap_s": 0.01, "breaker_reset_s": 0.05}
    worker = await start(policy={"attempts": 3, "breaker_failures": 2, **soon})
    origin.behaviour = o.status(503, [("Retry-After", asked)])

    result = await worker.one(origin.url())

    assert (result.outcome, result.reason, result.status) == (Outcome.FAILED, Reason.HTTP_STATUS, 503)
    assert (result.attempts, result.throttles, len(origin.requests)) == (3, 0, 3)
    events = [line["event"] for line in lines]
    assert "lane.cooling" not in events
    assert "lane.breaker_open" not in events  # the failures of one fetch count once
    other = await worker.one(origin.url("/other"))
    assert (other.attempts, other.throttles) == (3, 0)
    assert "lane.breaker_open" in [line["event"] for line in lines]


async def test_a_403_that_asks_for_no_wait_is_final(origin: Origin, worker: OneWorker) -> None:
    """As one without Retry-After."""
    origin.behaviour = o.status(403, [("Retry-After", "0")])

    result = await worker.one(origin.url())

    assert (result.reason, result.attempts, result.throttles) == (Reason.HTTP_STATUS, 1, 0)


@pytest.mark.parametrize("body", ["cut", "stalled"])
async def test_a_throttle_with_a_broken_body_is_a_throttle(
    origin: Origin, worker: OneWorker, body: str
) -> None:
    """The header of a 429 is enough."""

    async def throttle(x: Exchange) -> None:
        await x.send_head(429, [("Retry-After", "1"), ("Content-Length", "100")])
        x.windows.append((time.monotonic(), time.monotonic() + 1))
        await x.send(b"slow down")
        if body == "stalled":
            await asyncio.Event().wait()
        x.close()

    origin.behaviour = o.sequence(throttle, o.OK)

    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts, result.throttles) == (Outcome.STORED, 1, 1)
    assert requests_inside(origin.windows, origin.requests, SLACK_S) == []


async def test_repeated_429_without_retry_after_back_off_longer_each_time(
    origin: Origin, worker: OneWorker, lines: Lines
) -> None:
    """Each throttle is an incident and charges no attempt."""
    origin.behaviour = o.sequence(o.status(429), o.status(429), o.OK)

    result = await worker.one(origin.url())

    arrivals = [seen.arrived_s for seen in origin.requests]
    first_s, second_s = (after - before for before, after in pairwise(arrivals))
    assert (result.outcome, result.attempts, result.throttles) == (Outcome.STORED, 1, 2)
    assert 1 <= first_s < second_s
    assert [line["incidents"] for line in events(lines, "lane.cooling")] == [1, 2]


async def test_a_throttled_host_delays_no_other_host(origin: Origin, other: Origin, start: Start) -> None:
    """A cooling lane holds no slot. The worker has only one here."""
    worker = await start(max_in_flight=1)
    origin.behaviour = o.retry_after(3600)
    throttled = await worker.submit(origin.url(f"/{n}") for n in range(5))
    await wait_until(lambda: origin.windows, "the throttle")

    results = await worker.results(other.url(f"/{n}") for n in range(20))

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert len(origin.requests) == 1
    assert (await throttled.counts()).done == 0


async def test_a_fetch_whose_deadline_is_before_the_end_of_its_cool_down_ends(
    origin: Origin, worker: OneWorker
) -> None:
    """It ends as `throttled` by its deadline, and sends no further request."""
    origin.behaviour = o.retry_after(3600)
    begun_s = time.monotonic()

    results = await worker.results({"url": origin.url(f"/{n}"), "deadline_s": 1.0} for n in range(20))

    assert {result.reason for result in results} == {Reason.THROTTLED}
    assert {result.attempts for result in results} == {0}
    assert time.monotonic() - begun_s < 5
    assert requests_inside(origin.windows, origin.requests, SLACK_S) == []


async def test_a_fetch_submitted_to_a_cooling_lane_ends_at_its_deadline(
    origin: Origin, worker: OneWorker
) -> None:
    """The lane is closed for an hour and held by no worker."""
    origin.behaviour = o.retry_after(3600)
    await worker.submit([origin.url()])
    await wait_until(lambda: origin.windows, "the throttle")
    await wait_until(lambda: not worker.runtime.lanes, "the lane to be released")

    result = await worker.one(origin.url("/late"), deadline_s=0.5)

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.THROTTLED)
    assert (result.attempts, len(origin.requests)) == (0, 1)


async def test_the_breaker_opens_probes_and_closes(origin: Origin, start: Start, lines: Lines) -> None:
    """One probe follows each open time. The host is served again when a probe succeeds."""
    worker = await start(
        policy={"breaker_failures": 4, "breaker_reset_s": 0.6, "concurrency": 2, "attempts": 100}
    )
    origin.behaviour = o.sequence(*[o.status(500)] * 5, o.latency(0.1))

    results = await worker.results(origin.url(f"/{n}") for n in range(10))

    arrivals = [seen.arrived_s for seen in origin.requests]
    # The probe is the first request after a pause of the breaker's length.
    probe = next(n for n in range(1, len(arrivals)) if arrivals[n] - arrivals[n - 1] >= 0.6)
    assert 4 <= probe <= 5
    assert all(seen.arrived_s >= origin.requests[probe].finished_s for seen in origin.requests[probe + 1 :])
    assert {result.outcome for result in results} == {Outcome.STORED}
    breaker = [line["event"] for line in lines if line["event"].startswith("lane.breaker")]
    openings = breaker.count("lane.breaker_open")
    assert breaker == ["lane.breaker_open", "lane.breaker_half_open"] * openings + ["lane.breaker_closed"]


async def test_one_url_that_fails_does_not_close_its_host(start: Start, lines: Lines) -> None:
    """Its attempts count once in any kind of failure, alone or among other fetches."""
    policy = {"breaker_failures": 3, "breaker_reset_s": 3600, "attempts": 3, "concurrency": 2}
    worker = await start(policy=policy)
    faults = (o.status(500), o.status(503), o.reset, o.truncated(b"half", 8), o.stall_headers(0))
    hosts = {f"127.0.0.{place}": o.by_path({"/bad": fault}, o.OK) for place, fault in enumerate(faults, 50)}
    async with serve_origins({host: (host, behaviour) for host, behaviour in hosts.items()}) as origins:
        bad = [place.url("/bad") for place in origins.values()]
        alone = await worker.results(bad)
        good = [place.url(f"/{number}") for place in origins.values() for number in range(10)]
        results = await worker.results([*bad, *good])

    assert [(Outcome.FAILED, 3)] * 10 == [(result.outcome, result.attempts) for result in alone + results[:5]]
    assert {Outcome.STORED} == {result.outcome for result in results[5:]}
    assert not [line for line in lines if line["event"].startswith("lane.breaker")]


async def test_refused_connections_of_a_single_fetch_open_the_breaker(start: Start, lines: Lines) -> None:
    """Each counts, because a failed connection is not caused by the fetch."""
    worker = await start(policy={"breaker_failures": 3, "breaker_reset_s": 3600, "attempts": 100})
    with socket.socket() as closed:
        closed.bind((HOST, 0))
        batch = await worker.submit([f"http://{HOST}:{closed.getsockname()[1]}/"])
        await wait_until(lambda: events(lines, "lane.breaker_open"), "the breaker to open")
        await wait_until(lambda: len(events(lines, "fetch.retry")) >= 3, "the third retry to be settled")
        await batch.cancel()

    assert [1, 2, 3] == [line["attempts"] for line in events(lines, "fetch.retry")]


async def test_404_responses_never_open_the_breaker(origin: Origin, start: Start, lines: Lines) -> None:
    """They report a fault of the request, not of the host."""
    worker = await start(policy={"breaker_failures": 2, "breaker_reset_s": 3600})
    origin.behaviour = o.NOT_FOUND

    results = await worker.results(origin.url(f"/{n}") for n in range(30))

    assert {result.status for result in results} == {404}
    assert len(origin.requests) == 30
    assert not [line for line in lines if line["event"].startswith("lane.breaker")]


async def test_requests_keep_to_the_rate_limit(origin: Origin, start: Start) -> None:
    """The fetches take hardly longer than the rate requires."""
    worker = await start(policy={"rate_per_s": 20, "concurrency": 8})

    await worker.run(origin.url(f"/{n}") for n in range(30))

    arrivals = [seen.arrived_s for seen in origin.requests]
    assert max(_in_windows_of(1.0, arrivals)) <= 23
    assert arrivals[-1] - arrivals[0] < 6


async def test_a_burst_is_sent_at_once_and_then_paced(origin: Origin, start: Start) -> None:
    """The policy's `burst` requests may start together."""
    worker = await start(policy={"rate_per_s": 10, "burst": 5, "concurrency": 8})

    await worker.run(origin.url(f"/{n}") for n in range(10))

    arrivals = [seen.arrived_s for seen in origin.requests]
    assert arrivals[-1] - arrivals[0] >= 0.4
    assert max(_in_windows_of(0.5, arrivals)) <= 11


async def test_the_rate_limit_counts_redirects_and_retries(origin: Origin, start: Start) -> None:
    """Every request that reaches the host counts."""
    worker = await start(policy={"rate_per_s": 20})
    hop = o.redirect(lambda target: f"/to{target}")
    origin.behaviour = o.by_path({"/": hop, "/to/": o.fail_times(3, 500)})

    await worker.run(origin.url(f"/{n}") for n in range(6))

    arrivals = [seen.arrived_s for seen in origin.requests]
    assert len(arrivals) >= 6 * 2 + 3
    assert arrivals[-1] - arrivals[0] >= 0.8 * (len(arrivals) - 1) / 20


class Gauge:
    """Count the requests that run at once, over all origins that share it."""

    def __init__(self, then: Behaviour) -> None:
        self.high_water = 0
        self._running = 0
        self._then = then

    async def __call__(self, x: Exchange) -> None:
        """Respond as `then` does."""
        self._running += 1
        self.high_water = max(self.high_water, self._running)
        try:
            await self._then(x)
        finally:
            self._running -= 1


def _in_windows_of(length_s: float, arrivals: list[float]) -> list[int]:
    """Return the number of arrivals in the window that begins with each arrival."""
    return [sum(start_s <= other_s < start_s + length_s for other_s in arrivals) for start_s in arrivals]


async def test_an_admitted_post_waits_if_a_cool_down_begins_before_it_is_sent(
    origin: Origin, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its start is noted in Redis first, which takes time here. The fetch charges one attempt."""
    told: list[Callable[[], None]] = []
    begun, refuse = settler.started, asyncio.Event()

    def slowly(entry: Entry, tell: Callable[[], None]) -> object:
        told.append(tell)
        return begun(entry, lambda: None)

    async def throttle_later(x: Exchange) -> None:
        await refuse.wait()
        await o.retry_after(2)(x)

    monkeypatch.setattr(settler, "started", slowly)
    origin.behaviour = o.by_path({"/first": o.sequence(throttle_later, o.OK)}, o.OK)
    worker = await start(policy={"concurrency": 2})
    batch = await worker.submit([origin.url("/first"), Fetch(url=origin.url("/second"), method="POST")])
    await wait_until(lambda: told and origin.requests, "a request, and the delayed start note")
    refuse.set()
    [lane] = worker.runtime.lanes.values()
    await wait_until(lane.blocked_s, "the cool-down")
    begun_s, _ = origin.windows[0]
    await wait_until(lambda: time.monotonic() > begun_s + 2 * SLACK_S, "the end of all requests in transit")
    monkeypatch.setattr(settler, "started", begun)
    told[0]()

    results = await results_of(batch)

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert [(result.attempts, result.interruptions) for result in results] == [(1, 0)] * 2
    assert not requests_inside(origin.windows, origin.requests, SLACK_S)
