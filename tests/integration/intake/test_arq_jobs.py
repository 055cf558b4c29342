"""The arq ingress: a job becomes one batch in any number of runs, and none is lost for lack of space."""

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from arq import Retry
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from fetchfleet import BatchExistsError, Fleet, InvalidFetchError
from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import NO_LIMITS, Limits, Submitter
from fetchfleet.jobs.contract import messages
from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.worker.intake.arq_jobs import ArqIngress
from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.runtime import arq_worker
from fetchfleet.worker.runtime.timings import WorkerTimings
from tests.support.lanes import BATCH_ID, ask, paths, url, waiting
from tests.support.log_lines import capture_logs

RUN = "job-1 2026-01-01"


async def nothing(_: Iterable[LaneNotification]) -> None:
    """Wake no lane."""


def ingress_to(redis: Redis, limits: Limits = NO_LIMITS, notify: Any = nothing) -> ArqIngress:
    return ArqIngress(redis, Submitter(redis, notify, limits), get_logger())


async def letters(redis: Redis) -> list[dict[bytes, bytes]]:
    return [row for _, row in await ask(redis, "XRANGE", keys.DEAD, "-", "+")]


async def run_as_job(ingress: ArqIngress, *args: Any, job_try: int = 1, **kwargs: Any) -> Any:
    """Run it as arq does."""
    live_lanes = SimpleNamespace(drained=asyncio.Event())
    runtime = SimpleNamespace(arq_ingress=ingress, timings=WorkerTimings(), live_lanes=live_lanes)
    ctx = {"runtime": runtime, "job_id": "job-1", "enqueue_time": "2026-01-01", "job_try": job_try}
    return await arq_worker.fetch(ctx, *args, **kwargs)


async def test_a_job_that_is_run_again_is_enqueued_once(redis: Redis) -> None:
    """Both runs return the same receipt. The same job at another time is another batch."""
    fetches = [url(f"/{i}") for i in range(1200)]
    first = await ingress_to(redis).fetch(RUN, (fetches,), {})
    again = await ingress_to(redis).fetch(RUN, (fetches,), {})
    other = await ingress_to(redis).fetch("job-1 2026-01-02", (url("/other"),), {})

    assert first == again
    assert [f"{first['batch']}-{i:08x}" for i in range(1200)] == first["ids"]
    assert first["batch"] != other["batch"]
    assert [*(f"/{i}" for i in range(1200)), "/other"] == paths(await waiting(redis))


async def test_an_interrupted_job_continues(redis: Redis) -> None:
    """Enqueued chunks stay, the rest follows."""

    async def crash(_: Iterable[LaneNotification]) -> None:
        raise KeyboardInterrupt

    fetches = [url(f"/{i}") for i in range(1200)]
    with pytest.raises(KeyboardInterrupt):
        await ingress_to(redis, notify=crash).fetch(RUN, (fetches,), {})
    in_before = len(await waiting(redis))
    await ingress_to(redis).fetch(RUN, (fetches,), {})

    assert 500 == in_before
    assert [f"/{i}" for i in range(1200)] == paths(await waiting(redis))


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((url("/1"), BATCH_ID), {}),
        ((url("/1"),), {"key": "x"}),
        ((url("/1"),), {"ctx": 1, "self": 2}),
        ((), {"what": url("/1")}),
        (("no URL",), {}),
        (([url("/1"), "no URL"],), {}),
        ((url("/1"),), {"batch": "mine"}),
        ((url("/1"),), {"v": 0}),
        ((url("/1"),), {"v": "2"}),
        ((url("/1"),), {"v": True}),
        ((url("/1"), 5), {"v": 1}),
        ((["x" * 10_000_000],), {}),
    ],
)
async def test_an_invalid_job_is_refused_and_becomes_a_dead_letter(
    redis: Redis, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """No fetch of it is enqueued. The letter is short."""
    with capture_logs() as lines, pytest.raises(InvalidFetchError) as caught:
        await run_as_job(ingress_to(redis), *args, **kwargs)

    [letter] = await letters(redis)
    want = {b"door": b"arq", b"reason": b"invalid", b"note": str(caught.value).encode()}
    assert want.items() <= letter.items()
    assert len(letter[b"element"]) <= 200
    assert ["intake.refused"] == [line["event"] for line in lines]
    assert [] == await waiting(redis)


async def test_a_batch_of_other_fetches_is_the_callers_error(redis: Redis) -> None:
    """The same batch again is not an error."""
    ingress = ingress_to(redis)
    for _ in range(2):
        assert BATCH_ID == (await run_as_job(ingress, url("/1"), batch=BATCH_ID))["batch"]
    with pytest.raises(BatchExistsError):
        await run_as_job(ingress, url("/2"), batch=BATCH_ID)

    assert ["/1"] == paths(await waiting(redis))


async def test_a_job_waits_while_the_fleet_is_full(redis: Redis, fleet: Fleet) -> None:
    """It is retried until it expires, at growing intervals."""
    await fleet.submit([url("/1")])
    with pytest.raises(Retry):
        await run_as_job(ingress_to(redis, Limits(fleet=1)), url("/2"))
    by_name = {function.name: function for function in arq_worker.FUNCTIONS}

    assert ["/1"] == paths(await waiting(redis))
    assert (by_name["fetch"].max_tries or 0) >= 24 * 3600


async def test_i27_a_job_for_a_newer_worker_is_deferred_until_one_accepts_it(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds with any arguments. It is logged once, and is not a dead letter."""
    old, newer = ingress_to(redis), ingress_to(redis)
    with capture_logs() as lines:
        for kwargs in ({"v": 3}, {"v": 3, "colour": "red"}):
            with pytest.raises(Retry) as caught:
                await run_as_job(old, url("/1"), **kwargs)
            assert WorkerTimings().unsupported_retry_s * 1000 == caught.value.defer_score
    waited = await waiting(redis)
    monkeypatch.setattr(messages, "MESSAGE_VERSION", 3)
    receipt = await run_as_job(newer, url("/1"), v=3)

    assert [] == waited
    assert [] == await letters(redis)
    assert 1 == len(receipt["ids"])
    assert ["/1"] == paths(await waiting(redis))
    assert [("intake.newer", "arq")] == [(line["event"], line["door"]) for line in lines]


async def test_a_job_for_a_newer_worker_is_tried_less_and_less_often(redis: Redis) -> None:
    """Twenty thousand of them leave room in arq's queue."""
    waits_s = []
    for job_try in (1, 2, 3, 6, 7, 100_000):
        with pytest.raises(Retry) as caught:
            await run_as_job(ingress_to(redis), url("/1"), job_try=job_try, v=999)
        waits_s.append((caught.value.defer_score or 0) / 1000)

    assert [5, 10, 20, 120, 120, 120] == waits_s


async def test_a_job_is_retried_after_an_error_of_redis(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such an error is not its result."""
    ingress = ingress_to(redis)

    async def gone(*_: Any, **__: Any) -> None:
        raise RedisConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(redis, "evalsha", gone)
        with pytest.raises(Retry):
            await run_as_job(ingress, url("/1"))
    await run_as_job(ingress, url("/1"))

    assert ["/1"] == paths(await waiting(redis))
