"""Bodies in an object store: whole or absent, resumed from the spool, and never the host's fault."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet import Batch, Fetch, Outcome, Reason
from fetchfleet.jobs.keys import lane as lane_key
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.runtime.timings import WorkerTimings
from fetchfleet.worker.sink.names import suffixed
from fetchfleet.worker.sink.objects import key, store, upload
from tests.component.conftest import HOST, Lines, Start, tuned
from tests.support.object_store import Bucket
from tests.support.range_server import RangedBody, body_of, range_of
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Exchange, Origin

BODY = body_of(1_000_000)
PARTS_BODY = body_of(11_000_001)
"""A body of two parts and a byte, with the sizes of `small_parts`."""

Begin = Callable[..., Awaitable[OneWorker]]


@pytest.fixture
def timings() -> WorkerTimings:
    """Short pauses after a refused body."""
    return replace(tuned(disk_pause_s=0.05, piece_bytes=64 * 1024), disk_check_s=0.02, disk_full_defer_s=0.05)


@pytest.fixture
def begin(start: Start, bucket: Bucket) -> Begin:
    """A function that starts workers which store bodies in the bucket. Their out folder is the spool."""

    async def begin(**parameters: Any) -> OneWorker:
        return await start(store=bucket.url, **parameters)

    return begin


@pytest.fixture
async def worker(begin: Begin) -> OneWorker:
    """A worker that stores bodies in the bucket."""
    return await begin()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upload bodies over 1 MiB in parts of 5 MiB, the least that stores accept."""
    monkeypatch.setattr(upload, "PUT_BYTES", 1 << 20)
    monkeypatch.setattr(upload, "PART_BYTES", 5 << 20)


def puts(bucket: Bucket) -> list[str]:
    """Return the requests that stored a body or a part of one."""
    return [seen for seen in bucket.requests("^PUT ") if ".fetchfleet" not in seen]


def assert_no_trace(worker: OneWorker, bucket: Bucket) -> None:
    """Assert that there is no object, no unfinished upload, and no spooled body."""
    assert (bucket.objects(), bucket.uploads()) == ({}, 0)
    assert not worker.parts()


@pytest.mark.parametrize("size_bytes", [0, 10, 1_000_000], ids=["empty", "small", "spooled"])
async def test_a_body_is_an_object_with_type_and_digest(
    origin: Origin, worker: OneWorker, bucket: Bucket, size_bytes: int
) -> None:
    """It is stored by one request. The result names store and path."""
    origin.behaviour = o.ok(BODY[:size_bytes], [("Content-Type", "image/png;  q=1")])

    result = await worker.one(origin.url())

    assert (result.outcome, result.store, result.bytes) == (Outcome.STORED, bucket.url, size_bytes)
    assert result.sha256 == hashlib.sha256(BODY[:size_bytes]).hexdigest()
    [(path, stored)] = bucket.objects().items()
    assert (path, stored.body) == (result.path, BODY[:size_bytes])
    assert stored.headers["content-type"] == "image/png; q=1"
    assert stored.headers["x-amz-meta-sha256"] == result.sha256
    assert (len(puts(bucket)), worker.files(), worker.parts()) == (1, set(), set())


@pytest.mark.parametrize(
    "dest",
    ["a/b.txt", "100%/%41 +#?&=.txt", "日本/é e\u0301.bin", ".hidden/..a", "~q'\"<>[]{}|^`*:;,@!$()"],
    ids=["plain", "escapes", "unicode", "dots", "signs"],
)
async def test_the_key_is_the_prefix_and_the_dest_as_it_is(
    origin: Origin, worker: OneWorker, bucket: Bucket, dest: str
) -> None:
    """Every dest is a key, without a second encoding."""
    result = await worker.one(origin.url(), dest=dest)

    assert (result.outcome, result.path) == (Outcome.STORED, dest)
    assert bucket.objects()[dest].body == b"ok"


async def test_a_body_in_segments_is_one_object(origin: Origin, worker: OneWorker, bucket: Bucket) -> None:
    """Its ranges are joined in the spool."""
    origin.behaviour = RangedBody(PARTS_BODY)

    result = await worker.one(origin.url(), segments=4)

    [(path, stored)] = bucket.objects().items()
    assert (result.outcome, result.path, result.status) == (Outcome.STORED, path, 206)
    assert stored.body == PARTS_BODY
    assert stored.headers["x-amz-meta-sha256"] == result.sha256 == hashlib.sha256(PARTS_BODY).hexdigest()
    assert len(origin.requests) > 1
    assert not worker.parts()


async def test_a_key_over_the_limit_is_refused_before_the_request(
    origin: Origin, worker: OneWorker, lines: Lines
) -> None:
    """The dest alone fits, but not below the prefix."""
    result = await worker.one(origin.url(), dest="/".join([*["x" * 100] * 10, "x" * 10]))

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.BAD_DEST)
    assert not origin.requests
    assert any("more than 1024 bytes" in str(line.get("note")) for line in lines)


@pytest.mark.usefixtures("small_parts")
async def test_a_large_body_is_uploaded_in_parts(origin: Origin, worker: OneWorker, bucket: Bucket) -> None:
    """All parts but the rest have one size, and the rest is sent last."""
    origin.behaviour = RangedBody(PARTS_BODY)

    result = await worker.one(origin.url(), dest="large")

    assert result.outcome is Outcome.STORED
    assert bucket.objects()["large"].body == PARTS_BODY
    assert bucket.objects()["large"].headers["x-amz-meta-sha256"] == result.sha256
    parts = sorted(seen for seen in puts(bucket) if "partNumber" in seen)
    assert [part.rpartition("partNumber=")[2].partition("&")[0] for part in parts] == ["1", "2", "3"]
    assert (bucket.uploads(), worker.parts()) == (0, set())


@pytest.mark.parametrize("size_bytes", [10, 1_000_000], ids=["small", "spooled"])
@pytest.mark.parametrize("fault", ["truncated", "digest"])
async def test_an_incomplete_or_wrong_body_is_not_sent_to_the_store(
    origin: Origin, begin: Begin, bucket: Bucket, size_bytes: int, fault: str
) -> None:
    """Length and digest are checked first."""
    worker = await begin(policy={"attempts": 1})
    body = BODY[:size_bytes]
    origin.behaviour = o.truncated(body, size_bytes + 1) if fault == "truncated" else o.ok(body)

    result = await worker.one(origin.url(), sha256=hashlib.sha256(b"another").hexdigest())

    reason = Reason.TRUNCATED if fault == "truncated" else Reason.DIGEST_MISMATCH
    assert (result.reason, result.store, puts(bucket)) == (reason, None, [])
    assert_no_trace(worker, bucket)


async def test_an_interrupted_body_resumes_from_the_spool(
    origin: Origin, worker: OneWorker, bucket: Bucket
) -> None:
    """The store receives the whole body once."""
    origin.behaviour = RangedBody(BODY, breaks=[700_000])

    result = await worker.one(origin.url(), dest="a")

    assert (result.outcome, result.attempts) == (Outcome.STORED, 2)
    assert [range_of(seen) for seen in origin.requests] == [None, "bytes=700000-"]
    assert (bucket.objects()["a"].body, len(puts(bucket))) == (BODY, 1)


@pytest.mark.parametrize("status", [503, 500, 429, 403])
async def test_a_refusal_of_the_store_is_not_the_fault_of_the_host(
    origin: Origin, worker: OneWorker, bucket: Bucket, lines: Lines, status: int
) -> None:
    """No attempt is charged, the gate of the host hears nothing, and a spooled body is not sent again."""
    origin.behaviour = RangedBody(BODY)
    tries = 1 if status == 403 else 3
    bucket.server.fail(f"PUT /{bucket.name}/", status=status, code="SlowDown", times=2 * tries)

    result = await worker.one(origin.url(), dest="a")

    assert (result.outcome, result.attempts, result.interruptions) == (Outcome.STORED, 1, 2)
    assert bucket.objects()["a"].body == BODY
    assert [range_of(seen) for seen in origin.requests] == [None, *["bytes=1000000-"] * 2]
    retries = [line for line in lines if line["event"] == "fetch.retry"]
    assert [line["reason"] for line in retries] == ["disk"] * 2
    assert f"{bucket.url}: {status}" in retries[0]["note"]
    assert "SlowDown" in retries[0]["note"]
    assert not [line for line in lines if line["event"] in {"breaker.opened", "host.throttled"}]


async def test_a_worker_pauses_while_the_store_keeps_refusing(
    origin: Origin, worker: OneWorker, bucket: Bucket, lines: Lines
) -> None:
    """The log names the store, not the disk. Work continues when the store accepts bodies again."""
    bucket.server.fail(f"PUT /{bucket.name}/")
    batch = await worker.submit([origin.url(f"/{number}") for number in range(3)])

    await wait_until(lambda: worker.runtime.disk_guard.shortage, "the worker to pause")
    [line] = [line for line in lines if line["event"] == "disk.refused"]
    assert f"{bucket.url}: 503" in line["error"]
    bucket.server.release()
    results = await results_of(batch)

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert len(bucket.objects()) == 3


@pytest.mark.parametrize("large", [False, True], ids=["one request", "parts"])
async def test_a_lane_that_is_lost_before_the_last_request_makes_no_object(
    origin: Origin,
    begin: Begin,
    bucket: Bucket,
    redis: Redis,
    request: pytest.FixtureRequest,
    *,
    large: bool,
) -> None:
    """Another worker stores the body. The first one aborts its upload."""
    if large:
        request.getfixturevalue("small_parts")
    body = PARTS_BODY if large else b"small"
    origin.behaviour = RangedBody(body)
    one = await begin(lease_s=1.0)
    bucket.server.hold(f"PUT /{bucket.name}/.*" + ("partNumber=2" if large else "a$"), times=1)
    batch = await one.submit([Fetch(url=origin.url(), dest="a")])
    await wait_until(lambda: [seen for seen in puts(bucket) if not large or "Number=2" in seen], "a PUT")

    await redis.hset(lane_key(HOST), "token", "0")  # type: ignore[misc]
    await wait_until(lambda: not one.runtime.lanes, "the end of the lane")
    assert bucket.objects() == {}
    await one.stop()
    bucket.server.release()
    two = await begin(worker_id="two")
    await wait_until(lambda: _swept(two, batch), "the end of the batch", timeout_s=20, every_s=0.1)
    [result] = await results_of(batch)

    assert (result.outcome, result.worker) == (Outcome.STORED, "two")
    assert bucket.objects()["a"].body == body


async def _swept(worker: OneWorker, batch: Batch) -> bool:
    await worker.runtime.sweep.once()
    return (await batch.counts()).ended


@pytest.mark.usefixtures("small_parts")
async def test_the_lease_is_checked_after_the_last_part(
    origin: Origin, worker: OneWorker, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload whose lease ended while parts were sent is aborted, and the fetch repeated."""
    origin.behaviour = RangedBody(PARTS_BODY)
    asked: list[int] = []
    may_place = Lane.may_place

    def refused_once(lane: Lane) -> bool:
        asked.append(len([seen for seen in puts(bucket) if "partNumber" in seen]))
        return len(asked) > 1 and may_place(lane)

    monkeypatch.setattr(Lane, "may_place", refused_once)

    result = await worker.one(origin.url(), dest="a")

    assert (result.outcome, result.interruptions) == (Outcome.STORED, 1)
    assert asked == [2, 4]
    assert (bucket.objects()["a"].body, bucket.uploads()) == (PARTS_BODY, 0)


async def test_a_body_that_waits_for_the_store_at_its_time_limit_charges_no_attempt(
    origin: Origin, begin: Begin, bucket: Bucket, lines: Lines
) -> None:
    """The host has sent the whole body, so its breaker hears nothing."""
    worker = await begin(
        policy={"timeout": Timeouts(connect_s=5, read_s=5, write_s=5, pool_s=5, total_s=0.5)}
    )
    origin.behaviour = RangedBody(BODY)
    bucket.server.hold(f"PUT /{bucket.name}/", times=1)

    result = await worker.one(origin.url(), dest="a")

    assert (result.outcome, result.attempts, result.interruptions) == (Outcome.STORED, 1, 1)
    [retry] = [line for line in lines if line["event"] == "fetch.retry"]
    assert (retry["reason"], retry["note"]) == ("disk", "the object store took too long")
    assert bucket.objects()["a"].body == BODY


@pytest.mark.parametrize("large", [False, True], ids=["one request", "parts"])
async def test_a_store_that_does_not_answer_is_given_up(
    origin: Origin,
    worker: OneWorker,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    *,
    large: bool,
) -> None:
    """The fetch waits as for a store that refuses. The body is sent again from the spool."""
    body = BODY
    if large:
        request.getfixturevalue("small_parts")
        body = PARTS_BODY
    monkeypatch.setattr(store, "STALL_S", 0.3)
    monkeypatch.setattr(store, "SLOWEST_BYTES_PER_S", 1 << 30)
    monkeypatch.setattr(upload, "ABORT_S", 0.05)
    origin.behaviour = RangedBody(body)
    bucket.server.hold("PUT /.*partNumber=2" if large else "PUT /.*a$", times=1)
    batch = await worker.submit([Fetch(url=origin.url(), dest="a")])
    await wait_until(lambda: len(origin.requests) == 2, "the second attempt")
    bucket.server.release()

    [result] = await results_of(batch)

    assert (result.outcome, result.attempts) == (Outcome.STORED, 1)
    assert result.interruptions >= 1
    assert range_of(origin.requests[1]) == f"bytes={len(body)}-"
    assert bucket.objects()["a"].body == body


async def test_a_body_of_segments_is_stored_whole(origin: Origin, begin: Begin, bucket: Bucket) -> None:
    """The segments are written to the spool, and uploaded together."""
    worker = await begin(policy={"concurrency": 3})
    body = body_of(3_000_000)
    origin.behaviour = RangedBody(body)

    result = await worker.one(origin.url(), dest="a", segments=3)

    assert (result.outcome, result.sha256) == (Outcome.STORED, hashlib.sha256(body).hexdigest())
    assert bucket.objects()["a"].body == body
    assert (len(puts(bucket)), worker.parts()) == (1, set())
    assert len(origin.requests) > 2


@pytest.mark.usefixtures("small_parts")
async def test_a_worker_that_stops_during_an_upload_removes_the_parts(
    origin: Origin, begin: Begin, bucket: Bucket
) -> None:
    """The next worker on the spool uploads the body. The host only confirms that it is complete."""
    origin.behaviour = RangedBody(PARTS_BODY)
    one = await begin(grace_s=0.0)
    bucket.server.hold(f"PUT /{bucket.name}/.*partNumber=2", times=1)
    batch = await one.submit([Fetch(url=origin.url(), dest="a")])
    await wait_until(lambda: [seen for seen in puts(bucket) if "Number=2" in seen], "the second part")
    stopping = asyncio.create_task(one.stop())
    await wait_until(stopping.done, "the stop")
    await stopping
    bucket.server.release()
    assert bucket.objects() == {}

    await begin(worker_id="two")
    [result] = await results_of(batch)

    assert (result.outcome, result.attempts) == (Outcome.STORED, 1)
    assert bucket.objects()["a"].body == PARTS_BODY
    assert [range_of(seen) for seen in origin.requests] == [None, f"bytes={len(PARTS_BODY)}-"]


# --- Names --------------------------------------------------------------------


async def test_a_taken_name_gets_the_fetch_id_unless_the_bytes_are_the_same(
    origin: Origin, worker: OneWorker, bucket: Bucket
) -> None:
    """The digest in the metadata tells; no body is read back, and none is replaced."""
    bodies = {"/1/a.txt": b"one", "/2/a.txt": b"two", "/3/a.txt": b"one"}
    origin.behaviour = o.ok(lambda target: bodies[target])

    results = [await worker.one(origin.url(target), name="{stem}{ext}") for target in bodies]

    assert [result.outcome for result in results] == [Outcome.STORED] * 3
    first, second, third = (result.path for result in results)
    assert (first, third) == ("a.txt", "a.txt")
    assert second is not None
    assert results[1].id in second
    assert {path: stored.body for path, stored in bucket.objects().items()} == {first: b"one", second: b"two"}


@pytest.mark.usefixtures("small_parts")
async def test_a_named_body_over_the_limit_of_one_request_has_its_fetch_id(
    origin: Origin, worker: OneWorker, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only this fetch writes to that key, so that parts without a condition replace no other body."""
    monkeypatch.setattr(key, "MAX_PUT_BYTES", 10_000_000)
    origin.behaviour = RangedBody(PARTS_BODY)

    result = await worker.one(origin.url("/a.bin"), name="{stem}{ext}")

    assert result.path == suffixed("a.bin", result.id)
    assert bucket.objects()[result.path].body == PARTS_BODY


@pytest.mark.parametrize("size_bytes", [10, 1_000_000], ids=["small", "spooled"])
async def test_a_content_addressed_body_is_sent_once(
    origin: Origin, worker: OneWorker, bucket: Bucket, size_bytes: int
) -> None:
    """An object of the same name and digest is the result of the second fetch."""
    origin.behaviour = o.ok(BODY[:size_bytes])

    results = [await worker.one(origin.url(target), name="{sha256}") for target in ("/a", "/b")]

    assert [result.path for result in results] == [results[0].sha256] * 2
    assert len(puts(bucket)) == 1
    assert not worker.parts()


# --- Bodies stored before ------------------------------------------------------


class Versioned:
    """A resource that responds to its own ETag with 304."""

    def __init__(self, body: bytes = b"as it is", tag: str = '"1"') -> None:
        self.body, self.tag = body, tag

    async def __call__(self, x: Exchange) -> None:
        """Send the body, or a 304."""
        if Origin.header(x.request, "If-None-Match") == self.tag:
            await x.respond(304, [("ETag", self.tag)])
        else:
            await x.respond(200, [("ETag", self.tag)], self.body)


@pytest.mark.parametrize("if_exists", ["skip", "fail"])
async def test_an_object_at_the_dest_prevents_the_request(
    origin: Origin, worker: OneWorker, bucket: Bucket, if_exists: str
) -> None:
    """As a file does."""
    await worker.one(origin.url(), dest="a")
    origin.behaviour = o.ok(b"newer")

    result = await worker.one(origin.url(), dest="a", if_exists=if_exists)

    assert (len(origin.requests), bucket.objects()["a"].body) == (1, b"ok")
    if if_exists == "skip":
        assert (result.outcome, result.path, result.bytes) == (Outcome.UNCHANGED, "a", 2)
        assert result.store == bucket.url
    else:
        assert (result.outcome, result.reason, result.store) == (Outcome.FAILED, Reason.EXISTS, None)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("size_bytes", [10, 1_000_000, 11_000_000], ids=["small", "spooled", "large"])
@pytest.mark.parametrize("if_exists", ["skip", "fail"])
async def test_an_object_created_meanwhile_stays(
    origin: Origin, worker: OneWorker, bucket: Bucket, size_bytes: int, if_exists: str
) -> None:
    """The store checks it with the request that would make the object, whatever the size."""
    let_go = asyncio.Event()
    origin.behaviour = o.by_path({"/slow": o.held(let_go, RangedBody(PARTS_BODY[:size_bytes]))}, o.OK)
    batch = await worker.submit([Fetch(url=origin.url("/slow"), dest="a", if_exists=if_exists)])
    await wait_until(lambda: origin.requests, "the request")
    await worker.one(origin.url("/quick"), dest="a")
    let_go.set()

    [result] = await results_of(batch)

    assert bucket.objects()["a"].body == b"ok"
    if if_exists == "skip":
        assert (result.outcome, result.path, result.bytes) == (Outcome.UNCHANGED, "a", 2)
    else:
        assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.EXISTS)
    assert (bucket.uploads(), worker.parts()) == (0, set())


@pytest.mark.parametrize("dest", ["a", None])
async def test_an_unchanged_object_is_revalidated(
    origin: Origin, worker: OneWorker, bucket: Bucket, dest: str | None
) -> None:
    """The host confirms it with a 304. A changed or deleted object is fetched again."""
    origin.behaviour = Versioned()
    fields = {"dest": dest, "revalidate": True}
    first = await worker.one(origin.url(), **fields)
    assert first.path is not None

    again = await worker.one(origin.url(), **fields)
    assert (again.outcome, again.path, again.sha256) == (Outcome.UNCHANGED, first.path, first.sha256)
    assert (again.store, again.status) == (bucket.url, 304)

    bucket.server.request("PUT", f"/{bucket.name}/some%20prefix/{first.path}")  # another, empty object
    changed = await worker.one(origin.url(), **fields)
    assert (changed.outcome, changed.path == first.path) == (Outcome.STORED, dest is not None)
    assert changed.path is not None
    bucket.delete(changed.path)
    assert (await worker.one(origin.url(), **fields)).outcome is Outcome.STORED
    sent = [Origin.header(seen, "If-None-Match") for seen in origin.requests]
    assert sent == [None, '"1"', None, None]


async def test_the_stored_object_is_the_result_while_the_host_is_down(
    origin: Origin, begin: Begin, bucket: Bucket
) -> None:
    """The fallback finds it by the index, another worker's too."""
    policy = {"fallback": "stale", "attempts": 1}
    one = await begin(policy=policy)
    first = await one.one(origin.url())
    await one.stop()
    origin.behaviour = o.status(500)
    two = await begin(policy=policy, worker_id="two", out=one.out / "another")

    result = await two.one(origin.url())

    assert (result.outcome, result.stale, result.store) == (Outcome.UNCHANGED, True, bucket.url)
    assert (result.path, result.bytes, result.sha256) == (first.path, 2, first.sha256)


@pytest.mark.parametrize("status", [503, 403])
async def test_an_unreadable_index_costs_a_whole_request_only(
    origin: Origin, worker: OneWorker, bucket: Bucket, status: int
) -> None:
    """The store refuses all reads."""
    origin.behaviour = Versioned()
    await worker.one(origin.url(), revalidate=True)
    bucket.server.fail("(GET|HEAD) ", status=status)

    result = await worker.one(origin.url(), revalidate=True)
    skipping = await worker.one(origin.url(), dest="a", if_exists="skip")

    assert (result.outcome, result.status) == (Outcome.STORED, 200)
    assert skipping.outcome is Outcome.STORED


async def test_the_start_of_a_worker_names_the_store(
    worker: OneWorker, bucket: Bucket, lines: Lines, tmp_path: Path
) -> None:
    """The log and the registration say that bodies are objects."""
    [line] = [line for line in lines if line["event"] == "worker.started"]

    assert (line["sink"], line["out"], line["spool"]) == ("objects", bucket.url, str(tmp_path / "out"))
    assert bucket.keys() == [".fetchfleet/trial"]
    assert worker.runtime.registration.sink == "objects"
