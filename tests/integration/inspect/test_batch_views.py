"""The list of batches, and one batch in detail."""

from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis

from fetchfleet import Fleet, Outcome, Reason
from fetchfleet.jobs import keys
from fetchfleet.jobs.client.batch_list import MAX_TIME_MS
from fetchfleet.jobs.redis_connection import redis_now_ms
from fetchfleet.worker.gate.state import GateState, to_json
from fetchfleet.worker.inspect.views import batches as batch_views
from fetchfleet.worker.inspect.views.batches import batch_detail, batches
from fetchfleet.worker.inspect.views.hosts import WHY
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.settings import NO_POLICY
from tests.support.conflicting_keys import TYPES, plant_value
from tests.support.lanes import LaneHold, ask, ended, stored


async def test_a_running_batch_has_progress_a_rate_and_an_estimate(redis: Redis, fleet: Fleet) -> None:
    """The rate is that of its newest results."""
    batch = await fleet.submit([f"http://a.example/{i}" for i in range(40)])
    hold = await LaneHold.begin(redis)
    claim = await hold.claim(30)
    before = (await batches(redis)).batches[0]
    await hold.settle(*(stored(entry) for entry in claim.serialized))
    await ask(redis, "HSET", keys.batch(batch.id), "created_ms", await redis_now_ms(redis) - 3_600_000)
    page = await batches(redis)
    (row,) = page.batches

    assert ("running", 0, 40) == (before.state, before.done, before.left)
    assert (None, None) == (before.rate_per_s, before.eta_s)
    assert ("running", 30, 10) == (row.state, row.done, row.left)
    assert row.rate_per_s is not None
    assert row.rate_per_s > 30 / 300
    assert row.eta_s == pytest.approx(10 / row.rate_per_s, abs=0.1)
    assert (1, None) == (page.in_all, page.next_offset)


async def test_batches_are_paged_newest_first(redis: Redis, fleet: Fleet) -> None:
    """Members that are not batches, and batches without a fetch, take a place but are not shown."""
    created = [(await fleet.submit([f"http://a.example/{i}"])).id for i in range(3)]
    await redis.zadd(keys.BATCHES, {"not a batch": 2e12, "f" * 16: 1e12})
    for place, batch_id in enumerate(created):
        await redis.zadd(keys.BATCHES, {batch_id: 1.5e12 + place})
    first = await batches(redis, limit=2)
    second = await batches(redis, offset=first.next_offset or 0, limit=2)

    assert [created[2]] == [row.id for row in first.batches]
    assert [created[1], created[0]] == [row.id for row in second.batches]
    assert (5, 2, 4) == (first.in_all, first.next_offset, second.next_offset)


async def test_failures_are_counted_by_reason_until_all_are_found(
    redis: Redis, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest results are read first. The detail states if some failures were not read."""
    monkeypatch.setattr(batch_views, "READ_AT_ONCE", 3)
    batch = await fleet.submit([f"http://a.example/{i}" for i in range(20)])
    hold = await LaneHold.begin(redis)
    entries = (await hold.claim(20)).serialized
    reasons = [Reason.CONNECT, Reason.TLS, Reason.TLS]
    failures = zip(entries, reasons, strict=False)
    await hold.settle(
        *(
            ended(entry, Outcome.FAILED, reason=reason, note=f"of {place}" if place else None)
            for place, (entry, reason) in enumerate(failures)
        )
    )
    for entry in entries[3:]:
        await hold.settle(stored(entry))
    await ask(redis, "XADD", keys.results(batch.id), "*", "r", b"\xff", "other", "{")
    found = await batch_detail(redis, batch.id)
    monkeypatch.setattr(batch_views, "MAX_RESULTS_READ", 6)
    cut = await batch_detail(redis, batch.id)

    assert found is not None
    assert cut is not None
    assert ({"tls": 2, "connect": 1}, True) == (found.failures, found.failures_exact)
    assert [*found.failures] == ["tls", "connect"]
    assert {"tls": "of 2"} == found.notes
    assert ({}, False, 6) == (cut.failures, cut.failures_exact, cut.results_read)
    assert ("ended", 1, []) == (found.batch.state, found.lanes, found.hosts)


async def test_the_estimate_respects_the_rate_that_the_policy_allows(redis: Redis, fleet: Fleet) -> None:
    """Without a result it is the only known rate. A paused host has no end in sight."""
    batch = await fleet.submit([f"http://{host}.example/{i}" for host in "ab" for i in range(100)])
    free = await batch_detail(redis, batch.id)
    for host in "ab":
        await overrides.change(redis, fleet.notify, f"{host}.example", {"rate_per_s": 0.5})
    limited = await batch_detail(redis, batch.id)
    await overrides.pause(redis, fleet.notify, "*.example", NO_POLICY)
    paused = await batch_detail(redis, batch.id)

    assert free is not None
    assert limited is not None
    assert paused is not None
    assert (None, 200.0, None) == (free.batch.eta_s, limited.batch.eta_s, paused.batch.eta_s)
    assert ["a.example", "b.example"] == [row.host for row in limited.hosts]


async def test_the_estimate_and_the_hosts_of_a_batch_know_a_failing_host(redis: Redis, fleet: Fleet) -> None:
    """The time left is at least the wait for its breaker, and the host has its last failure in words.

    A saved state of another program has no words.
    """
    batch = await fleet.submit([f"http://a.example/{i}" for i in range(4)])
    hold = await LaneHold.begin(redis)
    await hold.settle(*(stored(entry) for entry in (await hold.claim(2)).serialized))
    opens_ms = await redis_now_ms(redis) + 60_000
    lane = {"state": "scheduled", "due_ms": opens_ms, "shut_until_ms": opens_ms, "why": "breaker"}
    failing = to_json(GateState(last_failure='connect, "no" [Errno 111]', down_since_ms=1))
    texts = []
    for saved in (failing, b'{"last_failure":[]}', b'{"last_failure":"x'):
        await redis.hset(keys.lane("a.example"), mapping={**lane, "gate": saved})  # type: ignore[misc]
        found = await batch_detail(redis, batch.id)
        assert found is not None
        assert found.batch.eta_s is not None
        assert 50 < found.batch.eta_s <= 60
        texts.append(found.hosts[0].why)

    assert texts == [f'{WHY["breaker"]}; last failure: connect, "no" [Errno 111]', *[WHY["breaker"]] * 2]


async def test_a_batch_that_redis_does_not_have_has_no_detail(redis: Redis) -> None:
    """Nor does text that is not a batch ID."""
    assert [None, None] == [await batch_detail(redis, name) for name in ("0123456789abcdef", "ff:policy\n*")]
    assert msgspec.to_builtins(await batches(redis))["batches"] == []


@pytest.mark.parametrize("kind", TYPES)
async def test_values_of_another_program_hide_no_batch(
    redis: Redis, fleet: Fleet, tmp_path: Path, kind: str
) -> None:
    """A key of another type counts as empty, and times are dates."""
    whole, odd = [(await fleet.submit([f"http://a.example/{i}"])).id for i in range(2)]
    for key in (keys.results(whole), keys.batch_lanes(whole)):
        await plant_value(redis, key, kind, tmp_path / "loaded")
    await ask(redis, "HSET", keys.batch(whole), "created_ms", "9" * 18)
    await redis.delete(keys.batch(odd))
    await plant_value(redis, keys.batch(odd), "list" if kind == "hash" else kind, tmp_path / "loaded")
    page = await batches(redis)
    detail = await batch_detail(redis, whole)

    assert [whole] == [row.id for row in page.batches]
    assert MAX_TIME_MS == page.batches[0].created_ms
    assert detail is not None
    assert {} == detail.failures
    await redis.flushdb()
