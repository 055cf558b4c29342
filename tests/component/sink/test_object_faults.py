"""Faults of an object store that leave open whether it has a body, and settings that change during a run."""

from dataclasses import replace
from urllib.parse import quote

import pytest

from fetchfleet import Fetch, Outcome
from fetchfleet.worker.errors import CommandError
from fetchfleet.worker.runtime.timings import WorkerTimings
from fetchfleet.worker.sink.objects import upload
from fetchfleet.worker.sink.objects.store import ObjectStore
from fetchfleet.worker.util import object_url
from tests.component.conftest import Lines, Start, tuned
from tests.support.object_store import Bucket
from tests.support.range_server import RangedBody, body_of
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin.server import Origin

PARTS_BODY = body_of(6_000_000)
"""A body of a part and a rest, with the sizes of `small_parts`."""


@pytest.fixture
def timings() -> WorkerTimings:
    """Short pauses after a refused body."""
    return replace(tuned(disk_pause_s=0.05), disk_check_s=0.02, disk_full_defer_s=0.05)


@pytest.fixture
async def worker(start: Start, bucket: Bucket) -> OneWorker:
    """A worker that stores bodies in the bucket."""
    return await start(store=bucket.url)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upload bodies over 1 MiB in parts of 5 MiB, the least that stores accept."""
    monkeypatch.setattr(upload, "PUT_BYTES", 1 << 20)
    monkeypatch.setattr(upload, "PART_BYTES", 5 << 20)


@pytest.mark.parametrize("if_exists", [None, "skip", "fail", "suffix"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_lost_reply_changes_no_outcome(
    origin: Origin, worker: OneWorker, bucket: Bucket, if_exists: str | None, *, after: bool
) -> None:
    """The client repeats the request. It finds the object that it has made itself."""
    bucket.server.cut(f"PUT /{bucket.name}/.*/a$", after=after)

    result = await worker.one(origin.url(), dest="a", if_exists=if_exists)

    assert (result.outcome, result.path, result.interruptions) == (Outcome.STORED, "a", 0)
    assert {path: stored.body for path, stored in bucket.objects().items()} == {"a": b"ok"}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("fault", ["an error with status 200", "a lost request", "a lost reply"])
async def test_a_failed_completion_is_repeated(
    origin: Origin, worker: OneWorker, bucket: Bucket, fault: str
) -> None:
    """S3 sends status 200 before it joins the parts; an error may follow in the body."""
    completion = f"POST /{bucket.name}/.*uploadId"
    if fault == "an error with status 200":
        bucket.server.fail(completion, status=200, code="InternalError", times=4)
    else:
        bucket.server.cut(completion, after=fault == "a lost reply")
    origin.behaviour = RangedBody(PARTS_BODY)

    result = await worker.one(origin.url(), dest="a")

    assert (result.outcome, result.attempts) == (Outcome.STORED, 1)
    assert bucket.objects()["a"].body == PARTS_BODY
    assert not worker.parts()


@pytest.mark.parametrize("if_exists", [None, "skip", "fail"])
@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "OperationAborted"])
async def test_a_collision_is_not_an_existing_object(
    origin: Origin, worker: OneWorker, bucket: Bucket, if_exists: str | None, code: str
) -> None:
    """S3 replies 409 to one of two requests at once, whichever of them it has done."""
    bucket.server.fail(f"PUT /{bucket.name}/.*/a$", status=409, code=code, times=1)

    result = await worker.one(origin.url(), dest="a", if_exists=if_exists)

    assert (result.outcome, result.attempts, result.interruptions) == (Outcome.STORED, 1, 1)
    assert bucket.objects()["a"].body == b"ok"


async def test_a_bucket_that_is_deleted_during_a_run_delays_its_bodies(
    origin: Origin, worker: OneWorker, bucket: Bucket, lines: Lines
) -> None:
    """They are stored when it is there again."""
    bucket.delete(".fetchfleet/trial")
    bucket.server.request("DELETE", f"/{bucket.name}")
    batch = await worker.submit([Fetch(url=origin.url(), dest="a")])
    await wait_until(lambda: [line for line in lines if line["event"] == "fetch.retry"], "a refused body")
    bucket.server.request("PUT", f"/{bucket.name}")

    [result] = await results_of(batch)

    assert (result.outcome, result.attempts) == (Outcome.STORED, 1)
    assert "NoSuchBucket" in next(line["note"] for line in lines if line["event"] == "fetch.retry")


@pytest.mark.parametrize(
    "prefix", ["100%25/a+b &=é~", "a:b;c,d@e", "x" * 500], ids=["escapes", "signs", "long"]
)
async def test_a_prefix_is_literal_and_a_key_may_have_1024_bytes(
    origin: Origin, start: Start, bucket: Bucket, prefix: str
) -> None:
    """The index is below the same prefix."""
    worker = await start(store=f"s3://{bucket.name}/{prefix}")
    dest = "/".join(["d" * 99] * 12)[: 1023 - len(prefix.encode())].removesuffix("/")

    results = [await worker.one(origin.url(), dest=dest, revalidate=True) for _ in range(2)]

    assert [result.outcome for result in results] == [Outcome.STORED] * 2
    stored = bucket.server.request("GET", f"/{bucket.name}/{quote(f'{prefix}/{dest}')}")
    assert (stored.body, stored.headers["x-amz-meta-fetch"]) == (b"ok", results[1].id)


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (301, "PermanentRedirect", 2),
        (400, "AuthorizationHeaderMalformed", 2),
        (400, "ExpiredToken", 2),
        (403, "RequestTimeTooSkewed", 2),
        (400, "RequestTimeout", 1),
        (503, "SlowDown", 1),
    ],
)
def test_a_start_ends_with_2_if_another_would_fail_too(
    bucket: Bucket, status: int, code: str, exit_code: int
) -> None:
    """A wrong region or an old token has another status than 403."""
    bucket.server.fail("PUT ", status=status, code=code)

    with pytest.raises(CommandError) as error:
        ObjectStore(object_url.parse(bucket.url)).check()

    assert error.value.exit_code == exit_code
