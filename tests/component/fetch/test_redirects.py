"""Where redirects lead, what goes along, and whose limits hold there."""

from pathlib import Path

import pytest

from fetchfleet import Outcome, Reason
from fetchfleet.jobs.contract.entry import MAX_HOPS
from tests.component.conftest import OTHER_HOST, Lines, Start
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Origin, requests_inside


def countdown(target: str) -> str:
    """/3 leads to /2, and so on."""
    return f"/{int(target[1:]) - 1}"


async def test_a_redirect_within_the_host_is_followed_at_once(
    origin: Origin, worker: OneWorker, lines: Lines
) -> None:
    """One attempt, one connection, one stay of the lane; the result names both URLs."""
    origin.behaviour = o.by_path({"/a": o.redirect("/b"), "/b": o.ok(b"there")})

    result = await worker.one(origin.url("/a"))

    assert (result.outcome, result.attempts) == (Outcome.STORED, 1)
    assert (result.url, result.final_url) == (origin.url("/a"), origin.url("/b"))
    assert worker.body(result) == b"there"
    assert origin.connections_opened == 1
    assert [line["event"] for line in lines].count("lane.taken") == 1


async def test_a_redirect_to_another_host_is_followed_in_its_lane(
    origin: Origin, other: Origin, start: Start
) -> None:
    """Fetches that a host sends elsewhere arrive there no faster than that host's limits let them."""
    worker = await start(policy={"concurrency": 8}, hosts={OTHER_HOST: {"concurrency": 2}})
    origin.behaviour = o.latency(0.02, o.redirect(other.url))
    other.behaviour = o.latency(0.02, o.ok(str.encode))

    results = await worker.results(origin.url(f"/{n}") for n in range(20))

    assert {(result.outcome, result.attempts) for result in results} == {(Outcome.STORED, 1)}
    assert [worker.body(result) for result in results] == [b"/%d" % n for n in range(20)]
    assert results[3].final_url == other.url("/3")
    assert other.high_water == 2
    assert origin.high_water > 2


async def test_a_redirect_to_a_host_that_cools_down_waits(
    origin: Origin, other: Origin, worker: OneWorker, lines: Lines
) -> None:
    """A Retry-After holds for those who are sent there, too, and not for the host that sends them."""
    origin.behaviour = o.redirect(other.url)
    other.behaviour = o.sequence(o.retry_after(1), o.OK)

    results = await worker.results(origin.url(f"/{n}") for n in range(5))

    assert {(result.outcome, result.attempts) for result in results} == {(Outcome.STORED, 1)}
    assert requests_inside(other.windows, other.requests, 0.15) == []
    assert {line["lane"] for line in lines if line["event"] == "lane.cooling"} == {OTHER_HOST}


async def test_a_redirect_with_retry_after_is_not_followed_before(
    origin: Origin, other: Origin, worker: OneWorker, lines: Lines
) -> None:
    """Neither within the host nor to another one, whose lane then takes the fetch."""
    origin.behaviour = o.by_path(
        {
            "/near": o.status(302, [("Location", "/there"), ("Retry-After", "0.5")]),
            "/far": o.status(307, [("Location", other.url("/there")), ("Retry-After", "1")]),
        },
        o.OK,
    )

    near, far = await worker.results([origin.url("/near"), origin.url("/far")])

    assert [(Outcome.STORED, 1, 0)] * 2 == [(of.outcome, of.attempts, of.throttles) for of in (near, far)]
    assert (near.final_url, far.final_url) == (origin.url("/there"), other.url("/there"))
    [first, second, there] = sorted(origin.requests, key=lambda seen: seen.arrived_s)
    assert there.arrived_s >= first.finished_s + 1
    assert other.requests[0].arrived_s >= min(first.finished_s, second.finished_s) + 1
    assert {OTHER_HOST} < {line["lane"] for line in lines if line["event"] == "lane.taken"}
    assert not [line for line in lines if line["event"] == "lane.cooling"]


async def test_a_retry_behind_a_redirect_stays_in_the_lane_of_its_host(
    origin: Origin, other: Origin, worker: OneWorker
) -> None:
    """The host that failed is asked again; the one that only pointed there is left in peace."""
    origin.behaviour = o.redirect(other.url)
    other.behaviour = o.fail_times(2, 500)

    result = await worker.one(origin.url("/a"))

    assert (result.outcome, result.attempts) == (Outcome.STORED, 3)
    assert (len(origin.requests), len(other.requests)) == (1, 3)


async def test_a_post_behind_a_redirect_is_not_sent_twice(
    origin: Origin, other: Origin, worker: OneWorker
) -> None:
    """The page after a POST may be asked for again, the POST may not."""
    origin.behaviour = o.redirect(other.url, 303)
    other.behaviour = o.fail_times(1, 500)

    await worker.one(origin.url("/a"), method="POST", body="x")

    assert [seen.method for seen in origin.requests] == ["POST"]
    assert {seen.method for seen in other.requests} == {"GET"}


async def test_secrets_do_not_cross_origins(origin: Origin, other: Origin, worker: OneWorker) -> None:
    """What was meant for one host is not shown to the next; what says how to answer goes along."""
    origin.behaviour = o.redirect(other.url("/b"))
    secrets = {"Authorization": "Bearer s", "X-Api-Key": "s", "Cookie": "s=1"}

    await worker.one(origin.url("/a"), headers={**secrets, "Accept-Language": "de"})

    [asked], [seen] = origin.requests, other.requests
    assert all(Origin.header(asked, name) for name in secrets)
    assert not any(Origin.header(seen, name) for name in (*secrets, "Referer"))
    assert Origin.header(seen, "Accept-Language") == "de"
    assert Origin.header(seen, "Host") == other.url().split("/")[2]


async def test_secrets_do_not_cross_ports(origin: Origin, worker: OneWorker) -> None:
    """Another port is another origin, although it is the same lane."""
    async with Origin.serving("127.0.0.11", o.OK) as neighbour:
        origin.behaviour = o.redirect(neighbour.url("/b"))

        result = await worker.one(origin.url("/a"), headers={"Authorization": "Bearer s"})

    assert result.outcome is Outcome.STORED
    assert Origin.header(neighbour.requests[0], "Authorization") is None


async def test_headers_stay_within_an_origin(origin: Origin, worker: OneWorker) -> None:
    """A redirect to the same origin is shown everything again."""
    origin.behaviour = o.by_path({"/a": o.redirect("/b"), "/b": o.OK})

    await worker.one(origin.url("/a"), headers={"Authorization": "Bearer s"})

    assert [Origin.header(seen, "Authorization") for seen in origin.requests] == ["Bearer s"] * 2


async def test_as_many_hops_as_allowed_are_followed(origin: Origin, worker: OneWorker) -> None:
    """Ten redirects and then a body."""
    origin.behaviour = o.by_path({"/0": o.OK, "/": o.redirect(countdown)})

    result = await worker.one(origin.url(f"/{MAX_HOPS}"))

    assert (result.outcome, result.final_url) == (Outcome.STORED, origin.url("/0"))


@pytest.mark.parametrize("path", ["/11", "/loop"])
async def test_one_hop_more_is_too_many(origin: Origin, worker: OneWorker, path: str) -> None:
    """The eleventh redirect, or a loop, ends the fetch for good."""
    origin.behaviour = o.by_path({"/0": o.OK, "/loop": o.redirect("/loop"), "/": o.redirect(countdown)})

    result = await worker.one(origin.url(path))

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.TOO_MANY_REDIRECTS)
    assert (result.attempts, len(origin.requests)) == (1, MAX_HOPS + 1)


async def test_hops_are_counted_across_hosts(origin: Origin, other: Origin, worker: OneWorker) -> None:
    """Two hosts that send a fetch to and fro cannot keep it up."""
    origin.behaviour, other.behaviour = o.redirect(other.url), o.redirect(origin.url)

    result = await worker.one(origin.url("/a"))

    assert result.reason is Reason.TOO_MANY_REDIRECTS
    assert len(origin.requests) + len(other.requests) == MAX_HOPS + 1


@pytest.mark.parametrize("headers", [[], [("Location", "ftp://x/")], [("Location", "http://")]])
async def test_a_redirect_to_nowhere_is_refused(
    origin: Origin, worker: OneWorker, headers: list[tuple[str, str]]
) -> None:
    """A Location that is missing or no URL of ours ends the fetch after one request."""
    origin.behaviour = o.status(302, headers)

    result = await worker.one(origin.url())

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.REDIRECT_REFUSED)
    assert (result.status, len(origin.requests)) == (302, 1)


@pytest.mark.parametrize(("code", "method", "body"), [(303, "GET", b""), (307, "PUT", b"x")])
async def test_the_status_decides_what_is_asked_next(
    origin: Origin, worker: OneWorker, code: int, method: str, body: bytes
) -> None:
    """303 asks with GET and without a body, 307 repeats the request."""
    origin.behaviour = o.by_path({"/a": o.redirect("/b", code), "/b": o.OK})

    await worker.one(origin.url("/a"), method="PUT", body="x")

    assert (origin.requests[1].method, origin.requests[1].body) == (method, body)


async def test_a_post_becomes_a_get_after_303(origin: Origin, worker: OneWorker) -> None:
    """The usual answer to a form: see over there."""
    origin.behaviour = o.by_path({"/a": o.redirect("/b", 303), "/b": o.OK})

    result = await worker.one(origin.url("/a"), method="POST", body="x")

    assert result.outcome is Outcome.STORED
    assert [(seen.method, seen.body) for seen in origin.requests] == [("POST", b"x"), ("GET", b"")]


@pytest.mark.parametrize("code", [307, 308])
async def test_a_post_is_sent_once_to_where_its_host_wants_it(
    origin: Origin, start: Start, tmp_path: Path, engine: str, code: int
) -> None:
    """With its body, whatever that comes from: the host has done nothing with it."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_bytes(b"x" * 200_000)
    worker = await start(engine=engine, in_folder=tmp_path / "in")
    origin.behaviour = o.by_path({"/a": o.redirect("/a/", code), "/a/": o.OK})
    post = {"url": origin.url("/a"), "method": "POST", "headers": {"Content-Type": "text/plain"}}

    results = await worker.results([{**post, "body": "x" * 200_000}, {**post, "body_file": "file"}])

    assert [(result.outcome, result.attempts) for result in results] == [(Outcome.STORED, 1)] * 2
    assert {result.final_url for result in results} == {origin.url("/a/")}
    assert sorted(seen.target for seen in origin.requests) == ["/a", "/a", "/a/", "/a/"]
    assert {(seen.method, len(seen.body)) for seen in origin.requests} == {("POST", 200_000)}
    assert {Origin.header(seen, "Content-Type") for seen in origin.requests} == {"text/plain"}


async def test_a_post_that_was_redirected_is_no_more_repeated_than_another(
    origin: Origin, worker: OneWorker
) -> None:
    """A host that hangs up may have done it; one that cannot be reached has not."""
    origin.behaviour = o.by_path({"/a": o.redirect("/b", 307), "/b": o.reset})

    result = await worker.one(origin.url("/a"), method="POST", body="x")

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.READ)
    assert [seen.target for seen in origin.requests] == ["/a", "/b"]


async def test_a_body_goes_to_another_host_only_if_the_policy_says_so(
    origin: Origin, other: Origin, start: Start
) -> None:
    """Through that host's lane, with what describes the body and without secrets."""
    worker = await start(hosts={OTHER_HOST: {"redirect_bodies": True}})
    origin.behaviour, other.behaviour = o.redirect(other.url, 308), o.redirect(origin.url, 307)
    headers = {"Content-Type": "text/plain", "Authorization": "Bearer s"}
    post = {"method": "POST", "body": "x", "headers": headers}

    refused = await worker.one(origin.url("/a"), **post)
    assert (refused.reason, refused.final_url, len(origin.requests)) == (
        *(Reason.REDIRECT_REFUSED, origin.url("/a")),
        1,
    )
    origin.behaviour = o.OK
    stored = await worker.one(other.url("/b"), **post)

    assert (stored.outcome, stored.attempts, stored.final_url) == (Outcome.STORED, 1, origin.url("/b"))
    seen = origin.requests[-1]
    assert (seen.method, seen.body, Origin.header(seen, "Content-Type")) == ("POST", b"x", "text/plain")
    assert Origin.header(seen, "Authorization") is None


async def test_a_fetch_that_failed_elsewhere_says_where(
    origin: Origin, other: Origin, worker: OneWorker
) -> None:
    """final_url is the last URL that was asked."""
    origin.behaviour, other.behaviour = o.redirect(other.url), o.NOT_FOUND

    result = await worker.one(origin.url("/a"))

    assert (result.reason, result.status) == (Reason.HTTP_STATUS, 404)
    assert result.final_url == other.url("/a")
