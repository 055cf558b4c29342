"""The policy in force in a worker, as the tables in Redis change."""

from typing import cast

from redis.asyncio import Redis

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.worker.http.base import Pools
from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.file import Policy, parse_policy
from fetchfleet.worker.redis_support.health import RedisHealth
from fetchfleet.worker.runtime.live_policy import LivePolicy
from tests.support.log_lines import capture_logs

UNUSED = cast("Pools", None), cast("RedisHealth", None)


async def test_a_pause_holds_even_if_the_tables_conflict_with_the_file(fleet: Fleet, redis: Redis) -> None:
    """The worker refuses the tables and keeps its previous keys. The pause ends with `resume`."""
    file = parse_policy("[default]\nretry_base_s = 20\nretry_cap_s = 50\nburst = 3\n")
    with capture_logs() as lines:
        live = LivePolicy(file, redis, {}, *UNUSED, get_logger())
        await overrides.change(redis, fleet.notify, "a.example", {"retry_cap_s": 10})
        await overrides.pause(redis, fleet.notify, "*.example", Policy())
        await live.update(await redis.get(keys.POLICY_VERSION))
        paused = [live.policy.for_lane(lane).paused for lane in ("a.example", "b.example", "c.org")]
        burst = live.policy.for_lane("a.example").burst
        await overrides.resume(redis, fleet.notify, "*.example", Policy(), excepted=False)
        await live.update(await redis.get(keys.POLICY_VERSION))
        refused = live.refused
        await overrides.change(redis, fleet.notify, "a.example", {"retry_cap_s": None})
        await live.update(await redis.get(keys.POLICY_VERSION))

    assert [True, True, False] == paused
    assert 3 == burst
    assert not live.policy.for_lane("a.example").paused
    assert ["policy.refused", "policy.refused", "policy.changed"] == [line["event"] for line in lines]
    assert ("retry_cap_s" in refused, live.refused) == (True, "")


async def test_oversized_tables_are_ignored(fleet: Fleet, redis: Redis) -> None:
    """They do not reach a worker, and its log line about them stays short."""
    large = "x" * (1 << 20)
    foreign = {large: "{}", "b.example": f'{{"x": "{large}"}}', "c.example": f'{{"{large[:60_000]}": 1}}'}
    with capture_logs() as lines:
        live = LivePolicy(parse_policy(""), redis, {}, *UNUSED, get_logger())
        await overrides.change(redis, fleet.notify, "a.example", {"burst": 7})
        await redis.hset(keys.POLICY, mapping=foreign)  # type: ignore[misc]
        before = int((await redis.info("stats"))["total_net_output_bytes"])
        await live.update(b"2")
        received = int((await redis.info("stats"))["total_net_output_bytes"]) - before
        await redis.hdel(keys.POLICY, "c.example")  # type: ignore[misc]
        refused = live.refused
        await live.update(b"3")

    assert received < len(large) // 2
    assert 0 < len(refused) < 1000
    assert (live.refused, live.policy.for_lane("a.example").burst) == ("", 7)
    assert ["policy.refused", "policy.changed"] == [line["event"] for line in lines]
