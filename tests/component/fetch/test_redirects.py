"""Redirects: their targets, the headers they keep, and the limits of the target's host."""

from pathlib import Path

import pytest

from fetchfleet import Outcome, Reason
from fetchfleet.jobs.contract.entry import MAX_HOPS
from tests.component.conftest import OTHER_HOST, Lines, Start
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Origin, requests_inside


def countdown(target: str) -> str:
    """Return /2 for /3, and so on."""
    return f"/{int(target[1:]) - 1}"


async def test_a_redirect_within_the_host_is_followed_at_once(
    origin: Origin, worker: OneWorker, lines: Lines
) -> None:
    """It takes one attempt, one connection and one acquisition of the lane."""
    origin.behaviour = o.by_path({"/a": o.redirect("/b"), "/b": o.ok(b"there")})

    result = await worker.one(origin.url("/a"))

    assert (result.outcome, result.attempts) == (Outcome.STORED, 1)
    assert (result.url, result.final_url) == (origin.url("/a"), origin.url("/b"))
    assert worker.body(result) == b"there"
    assert origin.connections_opened == 1
    assert [line["event"] for line in lines].count("lane.taken") == 1


async def test_a_redirect_to_another_host_is_followed_in_that_hosts_lane(
    origin: Origin, other: Origin, start: Start
) -> None:
    """The target's concurrency limits these requests."""
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
    """The Retry-After of the target does not cool down the redirecting host."""
    origin.behaviour = o.redirect(other.url)
    other.behaviour = o.sequence(o.retry_after(1), o.OK)

    results = await worker.results(origin.url(f"/{n}") for n in range(5))

    assert {(result.outcome, result.attempts) for result in results} == {(Outcome.STORED, 1)}
    assert requests_inside(other.windows, other.requests, 0.15) == []
    assert {line["lane"] for line in lines if line["event"] == "lane.cooling"} == {OTHER_HOST}


async def test_a_redirect_with_retry_after_is_followed_after_that_delay(
    origin: Origin, other: Origin, worker: OneWorker, lines: Lines
) -> None:
    """The delay applies to targets at the same host and at another, and cools no lane down."""
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


async def test_a_retry_behind_a_redirect_stays_in_the_lane_of_the_target(
    origin: Origin, other: Origin, worker: OneWorker
) -> None:
    """The redirecting host is not requested again."""
    origin.behaviour = o.redirect(other.url)
    other.behaviour = o.fail_times(2, 500)

    result = await worker.one(origin.url("/a"))

    assert (result.outcome, result.attempts) == (Outcome.STORED, 3)
    assert (len(origin.requests), len(other.requests)) == (1, 3)


async def test_a_retry_behind_a_303_does_not_repeat_the_post(
    origin: Origin, other: Origin, worker: OneWorker
) -> None:
    """Only the GET at the target is retried."""
    origin.behaviour = o.redirect(other.url, 303)
    other.behaviour = o.fail_times(1, 500)

    await worker.one(origin.url("/a"), method="POST", body="x")

    assert [seen.method for seen in origin.requests] == ["POST"]
    assert {seen.method for seen in other.requests} == {"GET"}


async def test_secrets_do_not_cross_origins(origin: Origin, other: Origin, worker: OneWorker) -> None:
    """Authorization, Cookie and X-Api-Key are dropped. Accept-Language is kept."""
    origin.behaviour = o.redirect(other.url("/b"))
    secrets = {"Authorization": "Bearer s", "X-Api-Key": "s", "Cookie": "s=1"}

    await worker.one(origin.url("/a"), headers={**secrets, "Accept-Language": "de"})

    [asked], [seen] = origin.requests, other.requests
    assert all(Origin.header(asked, name) for name in secrets)
    assert not any(Origin.header(seen, name) for name in (*secrets, "Referer"))
    assert Origin.header(seen, "Accept-Language") == "de"
    assert Origin.header(seen, "Host") == other.url().split("/")[2]


async def test_secrets_do_not_cross_ports(origin: Origin, worker: OneWorker) -> None:
    """Another port is another origin, although it is in the same lane."""
    async with Origin.serving("127.0.0.11", o.OK) as neighbour:
        origin.behaviour = o.redirect(neighbour.url("/b"))

        result = await worker.one(origin.url("/a"), headers={"Authorization": "Bearer s"})

    assert result.outcome is Outcome.STORED
    assert Origin.header(neighbour.requests[0], "Authorization") is None


async def test_headers_are_kept_within_an_origin(origin: Origin, worker: OneWorker) -> None:
    """A redirect to the same origin gets all of them, also Authorization."""
    origin.behaviour = o.by_path({"/a": o.redirect("/b"), "/b": o.OK})

    await worker.one(origin.url("/a"), headers={"Authorization": "Bearer s"})

    assert [Origin.header(seen, "Authorization") for seen in origin.requests] == ["Bearer s"] * 2


async def test_ten_redirects_are_followed(origin: Origin, worker: OneWorker) -> None:
    """The eleventh response has the body."""
    origin.behaviour = o.by_path({"/0": o.OK, "/": o.redirect(countdown)})

    result = await worker.one(origin.url(f"/{MAX_HOPS}"))

    assert (result.outcome, result.final_url) == (Outcome.STORED, origin.url("/0"))


@pytest.mark.parametrize("path", ["/11", "/loop"])
async def test_the_eleventh_redirect_ends_the_fetch(origin: Origin, worker: OneWorker, path: str) -> None:
    """A loop ends the same way, without a retry."""
    origin.behaviour = o.by_path({"/0": o.OK, "/loop": o.redirect("/loop"), "/": o.redirect(countdown)})

    result = await worker.one(origin.url(path))

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.TOO_MANY_REDIRECTS)
    assert (result.attempts, len(origin.requests)) == (1, MAX_HOPS + 1)


async def test_hops_are_counted_across_hosts(origin: Origin, other: Origin, worker: OneWorker) -> None:
    """Two hosts that redirect to each other end the fetch after ten redirects too."""
    origin.behaviour, other.behaviour = o.redirect(other.url), o.redirect(origin.url)

    result = await worker.one(origin.url("/a"))

    assert result.reason is Reason.TOO_MANY_REDIRECTS
    assert len(origin.requests) + len(other.requests) == MAX_HOPS + 1


@pytest.mark.parametrize("headers", [[], [("Location", "ftp://x/")], [("Location", "http://")]])
async def test_a_redirect_without_a_valid_location_is_refused(
    origin: Origin, worker: OneWorker, headers: list[tuple[str, str]]
) -> None:
    """The header is missing, has no host, or has a scheme other than HTTP. The fetch is not retried."""
    origin.behaviour = o.status(302, headers)

    result = await worker.one(origin.url())

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.REDIRECT_REFUSED)
    assert (result.status, len(origin.requests)) == (302, 1)


@pytest.mark.parametrize(("code", "method", "body"), [(303, "GET", b""), (307, "PUT", b"x")])
async def test_the_status_of_a_redirect_decides_the_next_method(
    origin: Origin, worker: OneWorker, code: int, method: str, body: bytes
) -> None:
    """A 303 leads to a GET without a body, a 307 repeats the request."""
    origin.behaviour = o.by_path({"/a": o.redirect("/b", code), "/b": o.OK})

    await worker.one(origin.url("/a"), method="PUT", body="x")

    assert (origin.requests[1].method, origin.requests[1].body) == (method, body)


async def test_a_post_becomes_a_get_after_303(origin: Origin, worker: OneWorker) -> None:
    """A 303 is the usual response to a form (RFC 9110 §15.4.4)."""
    origin.behaviour = o.by_path({"/a": o.redirect("/b", 303), "/b": o.OK})

    result = await worker.one(origin.url("/a"), method="POST", body="x")

    assert result.outcome is Outcome.STORED
    assert [(seen.method, seen.body) for seen in origin.requests] == [("POST", b"x"), ("GET", b"")]


@pytest.mark.parametrize("code", [307, 308])
async def test_a_post_redirected_by_307_or_308_is_sent_once_to_the_target(
    origin: Origin, start: Start, tmp_path: Path, engine: str, code: int
) -> None:
    """Its body may be inline or a file. The redirecting host has not processed it."""
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


async def test_a_redirected_post_is_not_repeated_after_a_reset(origin: Origin, worker: OneWorker) -> None:
    """The target may have processed it before the reset."""
    origin.behaviour = o.by_path({"/a": o.redirect("/b", 307), "/b": o.reset})

    result = await worker.one(origin.url("/a"), method="POST", body="x")

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.READ)
    assert [seen.target for seen in origin.requests] == ["/a", "/b"]


async def test_a_body_is_redirected_to_another_host_only_if_the_policy_allows_it(
    origin: Origin, other: Origin, start: Start
) -> None:
    """The policy of the redirecting host decides. Content-Type is kept, Authorization is not."""
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


async def test_a_fetch_that_fails_behind_a_redirect_names_the_target(
    origin: Origin, other: Origin, worker: OneWorker
) -> None:
    """`final_url` is the last requested URL."""
    origin.behaviour, other.behaviour = o.redirect(other.url), o.NOT_FOUND

    result = await worker.one(origin.url("/a"))

    assert (result.reason, result.status) == (Reason.HTTP_STATUS, 404)
    assert result.final_url == other.url("/a")
