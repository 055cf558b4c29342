"""The policy's tables that are set at run time, for the whole fleet: kept in Redis, laid over the file."""

from collections.abc import Mapping
from typing import Any

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import SendWakes
from fetchfleet.jobs.redis_values import text_of
from fetchfleet.jobs.scripts.lanes import reschedule_lanes
from fetchfleet.worker.policy.file import DEFAULT, Policy, Table, covers, table_named
from fetchfleet.worker.policy.model import PolicyError

_decode = msgspec.json.Decoder(dict[str, Any]).decode


async def read(redis: Redis) -> dict[str, Table]:
    """Every table; what is no table is left out: nothing in Redis is trusted."""
    found: Mapping[bytes, bytes] = await redis.hgetall(keys.POLICY)  # type: ignore[misc]
    tables: dict[str, Table] = {}
    for name, text in found.items():
        try:
            tables[name.decode()] = _decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
    return tables


async def change(
    redis: Redis, send_wakes: SendWakes, host: str, values: Mapping[str, Any | None]
) -> dict[str, Table]:
    """Set keys of a host's table (None: take the key out) and wake what they may have parked.

    host: a host, a pattern or `default`. Workers see it within a second or so. The tables as they are
    now; raises PolicyError, and nothing has changed, when they cannot be used.
    """
    name = table_named(host)
    tables = await read(redis)
    table = {**tables.get(name, {}), **values}
    tables[name] = {key: value for key, value in table.items() if value is not None}
    Policy().overridden(tables)
    async with redis.pipeline(transaction=True) as pipe:
        if tables[name]:
            pipe.hset(keys.POLICY, name, msgspec.json.encode(tables[name]).decode())
        else:
            pipe.hdel(keys.POLICY, name)
            del tables[name]
        pipe.incr(keys.POLICY_VERSION)
        await pipe.execute()
    await _nudge(redis, send_wakes, name)
    return tables


async def _nudge(redis: Redis, send_wakes: SendWakes, name: str) -> None:
    lanes = [text_of(lane) for lane in await redis.zrange(keys.ATTENTION, 0, -1)]
    concerned = [lane for lane in lanes if name in {DEFAULT, lane} or covers(name, lane)]
    await send_wakes(await reschedule_lanes(redis, concerned))


def parsed(pairs: list[str]) -> dict[str, Any]:
    """`key=value` pairs as they are typed: values are JSON where they can be, else text.

    Raises PolicyError.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise PolicyError(f"{pair!r} is not KEY=VALUE")
        try:
            values[key] = msgspec.json.decode(text)
        except msgspec.DecodeError:
            values[key] = text
    return values
