"""robots.txt: the URLs it disallows, and how it is requested (RFC 9309)."""

import asyncio
import socket
from itertools import pairwise

import pytest
from redis.asyncio import Redis

from fetchfleet import Outcome, Reason
from fetchfleet.jobs import keys
from fetchfleet.worker.gate.robots_rules import MAX_BYTES
from fetchfleet.worker.gate.state import GateState
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.policy.model import LanePolicy, Timeouts
from fetchfleet.worker.util.clock import RedisClock
from tests.component.conftest import HOST, Lines, Start
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Behaviour, Exchange, Origin, requests_inside

OBEY = {"robots": "obey"}
SHORT = Timeouts(connect_s=0.5, read_s=0.2, write_s=0.5, pool_s=0.5, total_s=5)


@pytest.fixture
async def obeying(start: Start) -> OneWorker:
    """Return a worker whose policy has `robots = "obey"`."""
    return await start(policy=OBEY)


def robots_txt(text: str | bytes) -> Behaviour:
    """Return a site with a robots.txt of this text, and "ok" everywhere else."""
    return site(o.ok(text if isinstance(text, bytes) else text.encode()))


def site(robots: Behaviour, pages: Behaviour = o.OK) -> Behaviour:
    """Return a site with this response at /robots.txt, and the other everywhere else."""
    return o.by_path({"/robots.txt": robots, "/": pages})


def targets(origin: Origin) -> list[str]:
    """Return the requested targets, in order."""
    return [seen.target for seen in origin.requests]


async def test_a_disallowed_url_is_never_requested(origin: Origin, obeying: OneWorker) -> None:
    """Its fetch costs no attempt. Allowed URLs are fetched."""
    origin.behaviour = robots_txt(
        "User-agent: *\nDisallow: /private\nAllow: /private/open\nDisallow: /*.gif$"
    )
    paths = ["/a", "/private/a", "/private/open/a", "/b.gif", "/b.gif?x"]

    results = await obeying.run(origin.url(path) for path in paths)

    ends = {path: (results[origin.url(path)].outcome, results[origin.url(path)].reason) for path in paths}
    refused = (Outcome.FAILED, Reason.ROBOTS_DISALLOWED)
    stored = (Outcome.STORED, None)
    assert ends == dict(zip(paths, [stored, refused, stored, refused, stored], strict=True))
    assert {"/robots.txt", "/a", "/private/open/a", "/b.gif?x"} == set(targets(origin))
    assert {0, 1} == {result.attempts for result in results.values()}


async def test_the_robots_txt_is_requested_once_and_before_all_fetches(origin: Origin, start: Start) -> None:
    """Sixty fetches of three batches wait for it."""
    worker = await start(policy={**OBEY, "concurrency": 16})
    origin.behaviour = site(o.latency(0.05, o.ok(b"User-agent: *\nDisallow: /x")), o.latency(0.01))
    batches = [await worker.submit(origin.url(f"/{b}/{n}") for n in range(20)) for b in range(3)]

    for batch in batches:
        assert {Outcome.STORED} == {result.outcome for result in await results_of(batch)}

    first, *rest = origin.requests
    assert first.target == "/robots.txt"
    assert all(seen.arrived_s >= first.finished_s for seen in rest)
    assert 1 == targets(origin).count("/robots.txt")
    assert origin.high_water > 1


async def test_by_default_no_robots_txt_is_requested(origin: Origin, worker: OneWorker, redis: Redis) -> None:
    """Redis has no cached robots.txt either."""
    origin.behaviour = robots_txt("User-agent: *\nDisallow: /")

    result = await worker.one(origin.url("/a"))

    assert result.outcome is Outcome.STORED
    assert ["/a"] == targets(origin)
    assert [] == await redis.keys("ff:robots:*")


async def test_the_group_of_the_user_agent_applies(origin: Origin, start: Start) -> None:
    """It is found by product token. The group * does not apply then (RFC 9309 §2.2.1)."""
    worker = await start(policy=OBEY, user_agent="TestBot/3.1 (+http://a.example)")
    origin.behaviour = robots_txt("User-agent: testbot\nDisallow: /disallowed\n\nUser-agent: *\nDisallow: /")

    disallowed, allowed = await worker.results([origin.url("/disallowed"), origin.url("/allowed")])

    assert (Reason.ROBOTS_DISALLOWED, Outcome.STORED) == (disallowed.reason, allowed.outcome)
    assert "TestBot/3.1 (+http://a.example)" == Origin.header(origin.requests[0], "User-Agent")


@pytest.mark.parametrize(
    "robots",
    [
        o.NOT_FOUND,
        o.status(401),
        o.status(410, body=b"User-agent: *\nDisallow: /"),
        o.ok(b""),
        o.ok(b"\x00\xff<html>\x1b[2J</html>" * 99),
        o.ok(b"\xef\xbb\xbfUser-agent: *\r\nDisallow:\r\n"),
        o.status(302),
        o.redirect("ftp://a/robots.txt"),
        o.redirect("/robots.txt"),
        o.redirect("http://10.0.0.1/robots.txt"),
    ],
    ids=["404", "401", "410", "empty", "junk", "bom", "no-location", "ftp", "loop", "private"],
)
async def test_without_rules_everything_is_allowed(
    origin: Origin, obeying: OneWorker, robots: Behaviour
) -> None:
    """The robots.txt is missing, has no rules, or its redirect cannot be followed (RFC 9309 §2.3.1.3)."""
    origin.behaviour = site(robots)

    result = await obeying.one(origin.url("/a"))

    assert (result.outcome, result.attempts, result.throttles) == (Outcome.STORED, 1, 0)


@pytest.mark.parametrize(
    "broken",
    [
        o.status(503),
        o.status(500),
        o.reset,
        o.truncated(b"User-agent: *\n", 99),
        o.garbage(b"\x00 not HTTP\r\n\r\n"),
        o.stall_headers(0),
    ],
    ids=["503", "500", "reset", "truncated", "garbage", "no-response"],
)
async def test_no_fetch_starts_while_the_robots_txt_is_unreachable(
    origin: Origin, obeying: OneWorker, lines: Lines, broken: Behaviour
) -> None:
    """It is requested again, and no attempt is charged (RFC 9309 §2.3.1.4)."""
    origin.behaviour = site(o.sequence(broken, broken, o.ok(b"User-agent: *\nDisallow: /x")))

    stored, refused = await obeying.results([origin.url("/a"), origin.url("/x")])

    assert (stored.outcome, stored.attempts, stored.throttles) == (Outcome.STORED, 1, 0)
    assert refused.reason is Reason.ROBOTS_DISALLOWED
    assert ["/robots.txt"] * 3 + ["/a"] == targets(origin)
    assert 3 == len([line for line in lines if line["event"] == "lane.robots"])


async def test_a_robots_txt_that_stalls_is_requested_again(origin: Origin, start: Start) -> None:
    """The timeouts of the policy apply to it."""
    worker = await start(policy={**OBEY, "timeout": SHORT})

    async def stall(_: Exchange) -> None:
        await asyncio.Event().wait()

    origin.behaviour = site(o.sequence(stall, o.NOT_FOUND))

    result = await worker.one(origin.url("/a"))

    assert (result.outcome, result.attempts) == (Outcome.STORED, 1)
    assert ["/robots.txt", "/robots.txt", "/a"] == targets(origin)


@pytest.mark.parametrize("code", [403, 429, 503])
async def test_a_retry_after_for_the_robots_txt_cools_the_lane_down(
    origin: Origin, obeying: OneWorker, code: int
) -> None:
    """It counts as one throttle and costs no attempt."""
    origin.behaviour = site(o.sequence(o.retry_after(1, code), o.NOT_FOUND))

    results = await obeying.results(origin.url(f"/{n}") for n in range(5))

    assert requests_inside(origin.windows, origin.requests, 0.15) == []
    assert {(Outcome.STORED, 1)} == {(result.outcome, result.attempts) for result in results}
    assert 1 == sum(result.throttles for result in results)
    assert 2 == targets(origin).count("/robots.txt")


async def test_failed_requests_for_the_robots_txt_open_the_breaker(
    origin: Origin, start: Start, lines: Lines
) -> None:
    """The fetches then end at their deadlines, without an attempt."""
    worker = await start(policy={**OBEY, "breaker_failures": 3, "breaker_reset_s": 60})
    origin.behaviour = site(o.status(500))

    results = await worker.results({"url": origin.url(f"/{n}"), "deadline_s": 1.0} for n in range(10))

    assert {(Reason.DEADLINE, 0)} == {(result.reason, result.attempts) for result in results}
    assert ["/robots.txt"] * 3 == targets(origin)
    assert "lane.breaker_open" in [line["event"] for line in lines]


async def test_a_host_whose_robots_txt_stays_unreachable_is_dead(start: Start) -> None:
    """Its fetches end with `host_dead`, as those of other dead hosts."""
    worker = await start(policy={**OBEY, "breaker_failures": 1, "breaker_reset_s": 0.1, "give_up_s": 0.15})
    with socket.socket() as unheard:
        unheard.bind((HOST, 0))
        result = await worker.one(f"http://{HOST}:{unheard.getsockname()[1]}/")

    assert (result.outcome, result.reason, result.attempts) == (Outcome.FAILED, Reason.HOST_DEAD, 0)


async def test_a_forbidden_address_is_refused_without_waiting_for_its_robots_txt(start: Start) -> None:
    """The fetch fails with `egress_refused`."""
    worker = await start(policy=OBEY)

    result = await worker.one("http://10.0.0.1/a")

    assert (result.outcome, result.reason, result.attempts) == (Outcome.FAILED, Reason.EGRESS_REFUSED, 1)


async def test_at_most_500_kib_of_a_robots_txt_are_read(origin: Origin, obeying: OneWorker) -> None:
    """Rules within this limit apply. The rest is not waited for (RFC 9309 §2.5)."""
    head = b"User-agent: *\nDisallow: /early\n"
    body = head + b"# x\n" * (MAX_BYTES // 4) + b"Disallow: /late\n"

    async def endless(x: Exchange) -> None:
        await x.send_head(200, [("Content-Length", str(1 << 40))])
        await x.send(body)
        await asyncio.Event().wait()

    origin.behaviour = site(endless)

    early, late = await obeying.results([origin.url("/early"), origin.url("/late")])

    assert (early.reason, late.outcome) == (Reason.ROBOTS_DISALLOWED, Outcome.STORED)


@pytest.mark.parametrize("hops", [1, 5])
async def test_five_redirects_of_a_robots_txt_are_followed(
    origin: Origin, other: Origin, obeying: OneWorker, hops: int
) -> None:
    """The rules apply to the host that was requested first (RFC 9309 §2.3.1.2)."""
    chain = [f"/hop/{n}" for n in range(1, hops)]
    places = [*map(origin.url, chain), other.url("/rules")]
    steps = {"/robots.txt": o.redirect(places[0])}
    steps |= {at: o.redirect(to) for at, to in zip(chain, places[1:], strict=True)}
    origin.behaviour = o.by_path({"/": o.OK, **steps})
    other.behaviour = o.by_path({"/rules": o.ok(b"User-agent: *\nDisallow: /x")}, o.OK)

    refused, stored = await obeying.results([origin.url("/x"), origin.url("/a")])

    assert (refused.reason, stored.outcome) == (Reason.ROBOTS_DISALLOWED, Outcome.STORED)
    assert ["/robots.txt", *chain, "/a"] == targets(origin)
    assert ["/rules"] == targets(other)


async def test_a_host_is_not_blamed_for_a_robots_txt_redirect_to_a_host_that_throttles_or_fails(
    origin: Origin, other: Origin, start: Start, lines: Lines
) -> None:
    """The robots.txt counts as unreachable. It is requested again after the other host's Retry-After."""
    worker = await start(policy={**OBEY, "breaker_failures": 1, "breaker_reset_s": 3600})
    origin.behaviour = site(o.redirect(other.url("/rules")))
    other.behaviour = o.sequence(o.reset, o.status(500), o.retry_after(1), o.NOT_FOUND)

    result = await worker.one(origin.url("/a"))

    assert (result.outcome, result.attempts) == (Outcome.STORED, 1)
    assert ["/rules"] * 4 == targets(other)
    assert requests_inside(other.windows, other.requests, 0.15) == []
    assert not [line for line in lines if line["event"] in {"lane.cooling", "lane.breaker_open"}]


async def test_a_sixth_redirect_of_a_robots_txt_is_not_followed(origin: Origin, obeying: OneWorker) -> None:
    """The host counts as one without a robots.txt."""
    origin.behaviour = o.by_path(
        {"/robots.txt": o.redirect("/hop/1"), "/hop/": o.redirect(lambda at: f"{at}1"), "/": o.OK}
    )

    result = await obeying.one(origin.url("/a"))

    assert result.outcome is Outcome.STORED
    assert 1 + 5 + 1 == len(origin.requests)


async def test_a_redirect_to_a_disallowed_url_is_not_followed(
    origin: Origin, other: Origin, obeying: OneWorker
) -> None:
    """The robots.txt of the target's host applies."""
    rules = o.ok(b"User-agent: *\nDisallow: /x")
    origin.behaviour = o.by_path(
        {
            "/robots.txt": rules,
            "/a": o.redirect("/x"),
            "/b": o.redirect(other.url("/x")),
            "/c": o.redirect("/d"),
            "/": o.OK,
        }
    )
    other.behaviour = site(rules)

    near, far, allowed = await obeying.results(origin.url(path) for path in ("/a", "/b", "/c"))

    assert (Reason.ROBOTS_DISALLOWED, Reason.ROBOTS_DISALLOWED) == (near.reason, far.reason)
    assert (allowed.outcome, allowed.final_url) == (Outcome.STORED, origin.url("/d"))
    assert {"/robots.txt", "/a", "/b", "/c", "/d"} == set(targets(origin))
    assert ["/robots.txt"] == targets(other)


async def test_each_port_has_its_own_robots_txt(origin: Origin, obeying: OneWorker) -> None:
    """Another port is another origin in the same lane. A redirect to it waits for its robots.txt."""
    async with Origin.serving(HOST, robots_txt("User-agent: *\nDisallow: /x")) as neighbour:
        origin.behaviour = site(o.NOT_FOUND, o.redirect(neighbour.url))

        refused, stored = await obeying.results([origin.url("/x"), origin.url("/a")])

        assert (refused.reason, stored.outcome) == (Reason.ROBOTS_DISALLOWED, Outcome.STORED)
        assert ["/robots.txt", "/a"] == targets(neighbour)


async def test_a_crawl_delay_is_kept(origin: Origin, start: Start) -> None:
    """It also applies to the robots.txt and to redirects."""
    worker = await start(policy={**OBEY, "concurrency": 8})
    origin.behaviour = o.by_path(
        {
            "/robots.txt": o.ok(b"User-agent: *\nCrawl-delay: 0.5"),
            "/0": o.redirect("/to"),
            "/": o.OK,
        }
    )

    results = await worker.results(origin.url(f"/{n}") for n in range(3))

    arrivals = [seen.arrived_s for seen in origin.requests]
    assert {Outcome.STORED} == {result.outcome for result in results}
    assert 1 + 3 + 1 == len(arrivals)
    assert min(after - before for before, after in pairwise(arrivals)) >= 0.4


async def test_a_robots_txt_counts_towards_the_rate_limit(origin: Origin, start: Start) -> None:
    """Its redirects count too."""
    worker = await start(policy={**OBEY, "rate_per_s": 5})
    origin.behaviour = o.by_path({"/robots.txt": o.redirect("/rules"), "/rules": o.NOT_FOUND, "/": o.OK})

    await worker.results(origin.url(f"/{n}") for n in range(3))

    arrivals = [seen.arrived_s for seen in origin.requests]
    assert ["/robots.txt", "/rules"] == targets(origin)[:2]
    assert 5 == len(arrivals)
    assert min(after - before for before, after in pairwise(arrivals)) >= 0.1


async def test_a_deadline_ends_a_fetch_whose_robots_txt_waits_for_the_rate_limit(
    origin: Origin, start: Start
) -> None:
    """The next request may be sent only in a minute."""
    worker = await start(policy={**OBEY, "rate_per_s": 1 / 60})
    origin.behaviour = o.by_path({"/robots.txt": o.redirect("/rules")}, o.OK)

    async with asyncio.timeout(3):
        result = await worker.one(origin.url(), deadline_s=0.3)

    assert Reason.DEADLINE is result.reason
    assert ["/robots.txt"] == targets(origin)


async def test_the_workers_share_a_robots_txt(origin: Origin, start: Start, redis: Redis) -> None:
    """Redis keeps it for at most 24 hours (RFC 9309 §2.4)."""
    origin.behaviour = robots_txt("User-agent: *\nDisallow: /x\nCrawl-delay: 0.1")
    first = await start(policy=OBEY)
    await first.one(origin.url("/a"))
    await first.stop()
    second = await start(policy=OBEY, worker_id="two")

    refused, stored = await second.results([origin.url("/x"), origin.url("/b")])

    assert (refused.reason, stored.outcome) == (Reason.ROBOTS_DISALLOWED, Outcome.STORED)
    assert stored.worker == "two"
    assert ["/robots.txt", "/a", "/b"] == targets(origin)
    ttl_ms = await redis.pttl(keys.robots(origin.url("")))
    assert 0 < ttl_ms <= 24 * 3600 * 1000


@pytest.mark.parametrize("text", ["{", "null", '{"token": "other", "groups": "", "until_ms": 9}'])
async def test_an_invalid_cached_robots_txt_is_requested_again(
    origin: Origin, start: Start, redis: Redis, text: str
) -> None:
    """It is malformed, or of another product token."""
    origin.behaviour = robots_txt("User-agent: *\nDisallow: /x")
    await redis.set(keys.robots(origin.url("")), text, px=60_000)
    worker = await start(policy=OBEY)

    result = await worker.one(origin.url("/x"))

    assert result.reason is Reason.ROBOTS_DISALLOWED
    assert ["/robots.txt"] == targets(origin)


async def test_the_robots_txt_is_requested_again_after_its_batch_is_cancelled(
    origin: Origin, obeying: OneWorker
) -> None:
    """The cancelled fetch had requested it. The next fetch does so again."""
    stalled = asyncio.Event()

    async def stall(_: Exchange) -> None:
        stalled.set()
        await asyncio.Event().wait()

    origin.behaviour = site(o.sequence(stall, o.NOT_FOUND))
    batch = await obeying.submit([origin.url("/a")])
    await wait_until(stalled.is_set, "the request for the robots.txt")
    other = await obeying.submit([origin.url("/b")])
    await batch.cancel()

    assert [Outcome.CANCELLED] == [result.outcome for result in await results_of(batch)]
    assert [Outcome.STORED] == [result.outcome for result in await results_of(other)]
    assert ["/robots.txt", "/robots.txt", "/b"] == targets(origin)


async def test_a_stop_while_the_robots_txt_is_requested_is_not_an_interruption(
    origin: Origin, start: Start
) -> None:
    """The next worker sends the POST, although it may not be repeated."""
    stalled = asyncio.Event()

    async def stall(_: Exchange) -> None:
        stalled.set()
        await asyncio.Event().wait()

    origin.behaviour = site(o.sequence(stall, o.NOT_FOUND))
    first = await start(policy=OBEY, grace_s=0.1)
    batch = await first.submit([{"url": origin.url("/a"), "method": "POST", "body": "x"}])
    await wait_until(stalled.is_set, "the request for the robots.txt")
    await first.stop()
    await start(policy=OBEY, worker_id="two")

    [result] = await results_of(batch)

    assert (result.outcome, result.attempts, result.interruptions) == (Outcome.STORED, 1, 0)
    assert ["GET", "GET", "POST"] == [seen.method for seen in origin.requests]


async def test_a_fetch_started_at_the_end_of_its_robots_txt_request_is_in_flight() -> None:
    """The done callback of the request runs later and must not end the fetch."""
    clock = RedisClock()
    clock.sync(0)
    lane = Lane("a.example", 1, LanePolicy(), GateState(), clock)
    go_on = asyncio.Event()

    async def fetch() -> None:
        await go_on.wait()

    def ended(task: asyncio.Task[None]) -> None:
        lane.end("1", task)

    async def robots_request() -> None:
        lane.start("1", fetch(), ended)

    lane.start("1", robots_request(), ended)
    asked = lane.in_flight["1"]
    await asyncio.wait([asked])
    await asyncio.sleep(0)

    fetched = lane.in_flight["1"]
    go_on.set()
    await asyncio.wait([fetched])
    await asyncio.sleep(0)
    assert not lane.in_flight
