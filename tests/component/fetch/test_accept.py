"""Requirements for responses: types, sizes, statuses, X-Robots-Tag, checked at the host and in the sink."""

import gzip
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet import Accept, Fetch, Fleet, Outcome, Reason
from fetchfleet.jobs.contract import entry
from fetchfleet.worker.policy import overrides
from tests.component.conftest import HOST, Lines, Start, on_both_engines, tuned
from tests.support.lanes import later
from tests.support.range_server import RangedBody, body_of
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Behaviour, Origin

IMAGES = Accept(types=("image/*",))
PNG = [("Content-Type", "image/png")]
HTML = [("Content-Type", "text/html; charset=utf-8")]
BODY = b"0123456789"


def events(lines: Lines, *names: str) -> Lines:
    """Return the log lines of these events."""
    return [line for line in lines if line["event"] in names]


REFUSED: dict[str, tuple[Behaviour, dict[str, Any], Reason]] = {
    "/other-type": (o.ok(BODY, HTML), {"accept": IMAGES}, Reason.TYPE_REFUSED),
    "/no-type": (o.ok(BODY), {"accept": IMAGES}, Reason.TYPE_REFUSED),
    "/small": (o.ok(BODY), {"accept": Accept(min_bytes=11)}, Reason.TOO_SMALL),
    "/small-chunks": (o.chunked([BODY]), {"accept": Accept(min_bytes=11)}, Reason.TOO_SMALL),
    "/empty": (o.status(204), {"accept": Accept(min_bytes=1)}, Reason.TOO_SMALL),
    "/large": (o.ok(BODY), {"accept": Accept(max_bytes=9)}, Reason.TOO_LARGE),
    "/large-chunks": (
        o.chunked([BODY]),
        {"accept": Accept(max_bytes=9), "max_bytes": 20},
        Reason.TOO_LARGE,
    ),
    "/other-status": (o.status(203, (), BODY), {"accept": Accept(statuses=(200,))}, Reason.STATUS_REFUSED),
    "/noai": (o.ok(BODY, [("X-Robots-Tag", "noai")]), {"x_robots": "obey"}, Reason.X_ROBOTS_REFUSED),
}
"""The response, the fields of the fetch and the reason, by path."""


@on_both_engines
@pytest.mark.parametrize("sink", ["files", "warc"])
async def test_a_refused_response_ends_its_fetch_and_leaves_nothing(
    origin: Origin, start: Start, lines: Lines, sink: str
) -> None:
    """The host receives one request for each, and counts as working. No file remains."""
    worker = await start(sink=sink, policy={"breaker_failures": 1})
    origin.behaviour = o.by_path({path: behaviour for path, (behaviour, *_) in REFUSED.items()})

    results = await worker.results(
        Fetch(url=origin.url(path), **fields) for path, (_, fields, _) in REFUSED.items()
    )

    expected = [(Outcome.FAILED, reason, 1) for *_, reason in REFUSED.values()]
    assert expected == [(result.outcome, result.reason, result.attempts) for result in results]
    assert sorted(REFUSED) == sorted(seen.target for seen in origin.requests)
    assert not worker.files() | worker.parts()
    assert not events(lines, "lane.breaker_open")


@on_both_engines
async def test_a_body_of_a_refused_type_is_not_received(origin: Origin, start: Start) -> None:
    """The connection is closed soon after the head. That of a small body is used again."""
    worker = await start(policy={"accept": IMAGES, "concurrency": 1})
    origin.behaviour = o.by_path({"/large": o.big(1 << 30)}, o.ok(BODY, HTML))

    results = await worker.results(origin.url(path) for path in ("/small", "/large", "/again"))

    assert {result.reason for result in results} == {Reason.TYPE_REFUSED}
    assert [seen.aborted for seen in origin.requests] == [False, True, False]
    assert [seen.connection for seen in origin.requests] == [1, 1, 2]
    assert worker.runtime.services.sink.disk.received_bytes == 0


@on_both_engines
async def test_a_response_that_meets_all_requirements_is_stored(origin: Origin, start: Start) -> None:
    """Of the policy, here. The result has its type."""
    accept = Accept(types=("text/html", "image/*"), min_bytes=10, max_bytes=10, statuses=(200,))
    worker = await start(policy={"accept": accept, "retry_statuses": (404,), "x_robots": "obey"})
    origin.behaviour = o.ok(BODY, [*PNG, ("X-Robots-Tag", "other: noai"), ("X-Robots-Tag", "nofollow")])

    result = await worker.one(origin.url())

    assert (result.outcome, result.content_type, worker.body(result)) == (Outcome.STORED, "image/png", BODY)


async def test_the_requirements_of_a_fetch_replace_those_of_the_policy(origin: Origin, start: Start) -> None:
    """An empty `accept` requires nothing."""
    worker = await start(policy={"accept": IMAGES, "x_robots": "obey", "retry_statuses": (200,)})
    origin.behaviour = o.ok(BODY, [*HTML, ("X-Robots-Tag", "noindex")])

    result = await worker.one(origin.url(), accept=Accept(), x_robots="ignore", retry_statuses=())

    assert (result.outcome, result.content_type) == (Outcome.STORED, "text/html; charset=utf-8")


async def test_the_requirements_of_a_host_can_be_set_at_run_time(
    origin: Origin, worker: OneWorker, fleet: Fleet, redis: Redis
) -> None:
    """As by `fetchfleet policy set`."""
    origin.behaviour = o.ok(BODY, HTML)
    before = await worker.one(origin.url())

    await overrides.change(redis, fleet.notify, HOST, {"accept": {"types": ["image/*"]}})
    policy = worker.runtime.services.policy
    await wait_until(lambda: policy().for_lane(HOST).accept == IMAGES, "the worker to read the table")
    after = await worker.one(origin.url())

    assert (before.outcome, after.reason) == (Outcome.STORED, Reason.TYPE_REFUSED)


@on_both_engines
@pytest.mark.parametrize("sink", ["files", "warc"])
async def test_the_body_of_an_accepted_status_is_stored(origin: Origin, start: Start, sink: str) -> None:
    """An error page, with its status in the result. Statuses that are not accepted fail as before."""
    worker = await start(sink=sink, policy={"accept": Accept(statuses=(200, 404)), "attempts": 1})
    origin.behaviour = o.by_path({"/gone": o.status(404, HTML, BODY), "/bad": o.status(500)}, o.ok(BODY))

    gone, bad, good = await worker.results(origin.url(path) for path in ("/gone", "/bad", "/good"))

    assert (gone.outcome, gone.status, gone.reason, gone.bytes) == (Outcome.STORED, 404, None, 10)
    assert (bad.outcome, bad.status, bad.reason) == (Outcome.FAILED, 500, Reason.HTTP_STATUS)
    assert (good.outcome, good.status) == (Outcome.STORED, 200)


@on_both_engines
async def test_accepted_503s_open_the_breaker(origin: Origin, start: Start, lines: Lines) -> None:
    """Their bodies are stored, and the host is spared as if they were not."""
    worker = await start(
        policy={"accept": Accept(statuses=(503,)), "breaker_failures": 3, "breaker_reset_s": 3600}
    )
    origin.behaviour = o.status(503, HTML, BODY)
    batch = await worker.submit(origin.url(f"/{n}") for n in range(30))

    await wait_until(lambda: events(lines, "lane.breaker_open"), "the breaker to open")
    await wait_until(lambda: not worker.runtime.lanes, "the lane to be released")
    await batch.cancel()
    results = [result async for result in batch.results()]

    stored = [result for result in results if result.outcome is Outcome.STORED]
    assert {(result.status, result.bytes) for result in stored} == {(503, 10)}
    assert 3 <= len(stored) == len(origin.requests) <= 10  # those in flight when it opened are stored too
    assert {Outcome.CANCELLED, Outcome.STORED} == {result.outcome for result in results}


async def test_a_refused_503_counts_against_its_host(origin: Origin, start: Start, lines: Lines) -> None:
    """Its status is accepted, and its type is not."""
    accept = Accept(types=("image/*",), statuses=(200, 503))
    worker = await start(policy={"accept": accept, "breaker_failures": 1, "breaker_reset_s": 3600})
    origin.behaviour = o.status(503, HTML, BODY)

    result = await worker.one(origin.url())

    assert (result.reason, result.status, result.attempts) == (Reason.TYPE_REFUSED, 503, 1)
    assert events(lines, "lane.breaker_open")


@pytest.mark.parametrize("code", [403, 503])
async def test_a_throttle_is_never_a_body(origin: Origin, start: Start, lines: Lines, code: int) -> None:
    """The status is accepted, but the response asks to back off: the fetch waits for the cool-down."""
    worker = await start(policy={"accept": Accept(statuses=(200, code))})
    origin.behaviour = o.sequence(o.retry_after(1, code), o.ok(BODY))

    result = await worker.one(origin.url())

    assert (result.outcome, result.status, result.throttles, result.attempts) == (Outcome.STORED, 200, 1, 1)
    assert events(lines, "lane.cooling")
    assert origin.requests[1].arrived_s >= origin.requests[0].finished_s + 1


@on_both_engines
async def test_retried_statuses_charge_attempts_and_spare_the_breaker(
    origin: Origin, start: Start, lines: Lines
) -> None:
    """An eventually consistent host: 404, then 202 with Retry-After, then the body."""
    worker = await start(policy={"retry_statuses": (404, 202), "breaker_failures": 1})
    wait = [("Retry-After", "1")]
    origin.behaviour = o.by_path(
        {
            "/late": o.sequence(o.status(404), o.status(202, wait, b"soon"), o.ok(BODY)),
            "/never": o.status(404),
        }
    )

    late, never = await worker.results(origin.url(path) for path in ("/late", "/never"))

    assert (late.outcome, late.attempts, worker.body(late)) == (Outcome.STORED, 3, BODY)
    assert (never.reason, never.status, never.attempts) == (Reason.HTTP_STATUS, 404, 5)
    soon, then = [seen for seen in origin.requests if seen.target == "/late"][1:]
    assert then.arrived_s >= soon.finished_s + 1
    assert not events(lines, "lane.breaker_open")


async def test_a_post_is_not_repeated_for_a_retried_status(origin: Origin, worker: OneWorker) -> None:
    """The host may have carried it out."""
    origin.behaviour = o.status(202)

    result = await worker.one(origin.url(), method="POST", body="x", retry_statuses=(202,))

    assert (result.reason, result.status, len(origin.requests)) == (Reason.HTTP_STATUS, 202, 1)


async def test_redirects_are_followed_before_the_requirements_apply(
    origin: Origin, other: Origin, worker: OneWorker
) -> None:
    """Within the host and to another one. The type of the redirect itself does not matter."""
    origin.behaviour = o.by_path({"/a": o.redirect("/b"), "/b": o.redirect(other.url("/c"))})
    other.behaviour = o.ok(BODY, PNG)

    result = await worker.one(origin.url("/a"), accept=Accept(types=("image/*",), statuses=(200,)))

    assert (result.outcome, result.content_type) == (Outcome.STORED, "image/png")


async def test_a_head_request_is_refused_by_type_and_not_by_size(origin: Origin, worker: OneWorker) -> None:
    """It has no body of any size."""
    origin.behaviour = o.ok(BODY, HTML)

    by_type = await worker.one(origin.url(), method="HEAD", accept=IMAGES)
    by_size = await worker.one(origin.url(), method="HEAD", accept=Accept(min_bytes=100))

    assert (by_type.reason, by_type.content_type) == (Reason.TYPE_REFUSED, "text/html; charset=utf-8")
    assert by_size.outcome is Outcome.STORED


async def test_sizes_apply_to_the_decoded_body(origin: Origin, worker: OneWorker) -> None:
    """As `max_bytes` does."""
    origin.behaviour = o.ok(gzip.compress(bytes(1000)), [("Content-Encoding", "gzip")])

    accepts = (Accept(min_bytes=1000, max_bytes=1000), Accept(min_bytes=1001), Accept(max_bytes=999))
    results = [await worker.one(origin.url(), decode=True, accept=accept) for accept in accepts]

    assert [result.reason for result in results] == [None, Reason.TOO_SMALL, Reason.TOO_LARGE]


async def test_the_requirements_apply_to_the_whole_of_a_resumed_body(
    origin: Origin, worker: OneWorker
) -> None:
    """The rest is a 206 below `min_bytes` that repeats no Content-Type (RFC 9110 §15.3.7)."""
    body = body_of(3_000_000)

    def rest(start: int, total: int) -> tuple[int, list[tuple[str, str]], bytes]:
        where = ("Content-Range", f"bytes {start}-{total - 1}/{total}")
        return 206, [("ETag", '"one"'), where], body[start:]

    origin.behaviour = RangedBody(body, [("ETag", '"one"'), *PNG], [1_234_567], rest)
    accept = Accept(types=("image/png",), min_bytes=2_900_000, statuses=(200,))

    result = await worker.one(origin.url(), accept=accept)

    assert (result.outcome, result.status, result.attempts) == (Outcome.STORED, 206, 2)
    assert worker.body(result) == body


async def test_the_body_of_an_accepted_error_does_not_continue_a_partial_body(
    origin: Origin, worker: OneWorker
) -> None:
    """The host removed the resource while its body was received. Nothing of the partial body stays."""
    broken = RangedBody(body_of(3_000_000), breaks=[1_234_567])
    origin.behaviour = o.sequence(broken, o.status(404, HTML, BODY))

    result = await worker.one(origin.url(), accept=Accept(statuses=(200, 404)))

    assert (result.outcome, result.status, result.attempts) == (Outcome.STORED, 404, 2)
    assert worker.body(result) == BODY
    assert not worker.parts()


async def test_the_stored_body_of_an_error_is_no_stand_in(origin: Origin, start: Start) -> None:
    """`fallback` and `revalidate` use only bodies of good responses."""
    worker = await start(policy={"accept": Accept(statuses=(200, 404)), "attempts": 1})
    tag = [("ETag", '"gone"')]
    origin.behaviour = o.sequence(o.status(404, tag, BODY), o.status(404, tag, BODY), o.status(500))
    same = {"dest": "a", "revalidate": True, "fallback": "stale"}

    first, second = [await worker.one(origin.url(), **same) for _ in range(2)]
    third = await worker.one(origin.url(), revalidate=True, fallback="stale")

    assert [Outcome.STORED] * 2 == [first.outcome, second.outcome]
    assert (third.outcome, third.stale) == (Outcome.FAILED, False)
    assert {Origin.header(seen, "If-None-Match") for seen in origin.requests} == {None}


async def test_the_types_of_bodies_that_were_stored_before_are_not_judged(
    origin: Origin, start: Start
) -> None:
    """With a 304, as a file that stays, and as the stand-in for a host that is down. A new response is."""
    worker = await start(policy={"attempts": 1})
    tagged = [*HTML, ("ETag", '"one"')]
    origin.behaviour = o.sequence(
        o.ok(BODY, tagged), o.status(304, tagged), o.status(503), o.ok(BODY, tagged)
    )
    known = {"dest": "a", "revalidate": True, "fallback": "stale"}
    strict = {"accept": Accept(types=("image/*",), statuses=(201,))}
    first = await worker.one(origin.url(), **known)

    confirmed, stale = [await worker.one(origin.url(), **known, **strict) for _ in range(2)]
    kept = await worker.one(origin.url(), dest="a", if_exists="skip", **strict)
    judged = await worker.one(origin.url(), **strict)

    assert (first.outcome, first.path) == (Outcome.STORED, "a")
    for result in (confirmed, stale, kept):
        assert (result.outcome, result.path) == (Outcome.UNCHANGED, "a")
    assert (confirmed.status, confirmed.content_type, stale.stale) == (304, "text/html; charset=utf-8", True)
    assert (judged.reason, len(origin.requests)) == (Reason.STATUS_REFUSED, 4)


@on_both_engines
async def test_a_result_has_the_type_of_the_last_response(origin: Origin, start: Start, lines: Lines) -> None:
    """It is shortened, and equal to that in the log. A failure has it too, unless no response arrived."""
    worker = await start(policy={"attempts": 1})
    origin.behaviour = o.by_path(
        {"/none": o.ok(), "/long": o.ok(BODY, [("Content-Type", f"a/b;{'x' * 500}")]), "/dead": o.reset},
        o.status(404, HTML),
    )

    paths = ("/none", "/long", "/dead", "/gone")
    results = await worker.results(origin.url(path) for path in paths)

    assert [result.content_type for result in results] == [
        None,
        f"a/b;{'x' * 96}",
        None,
        "text/html; charset=utf-8",
    ]
    logged = {line["id"]: line["content_type"] for line in events(lines, "fetch.finished")}
    assert logged == {result.id: result.content_type for result in results}


async def test_i27_a_worker_of_the_first_version_leaves_a_fetch_with_requirements(
    origin: Origin, start: Start, fleet: Fleet, redis: Redis, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer worker makes it. The old one serves the others of the host."""
    monkeypatch.setattr(entry, "ENTRY_VERSION", 1)
    batch = await fleet.submit([Fetch(url=origin.url("/new"), accept=IMAGES)])
    worker = await start(timings=tuned(newer_return_s=0.2))
    [old] = await worker.results([origin.url("/old")])
    await wait_until(partial(later, redis, HOST), "the fetch to be put back")
    seen_by_the_old = [seen.target for seen in origin.requests]

    monkeypatch.undo()
    [new] = await results_of(batch)

    assert old.outcome is Outcome.STORED
    assert ["/old"] == seen_by_the_old
    assert events(lines, "lane.newer")
    assert (new.reason, new.attempts, new.interruptions) == (Reason.TYPE_REFUSED, 1, 0)
