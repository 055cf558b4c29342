"""Policy tables set at run time for the whole fleet: kept in Redis, they override the policy file."""

from collections.abc import Mapping
from typing import Any

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import Notify
from fetchfleet.jobs.redis_connection import text_of
from fetchfleet.jobs.scripts.lanes import reschedule_lanes
from fetchfleet.worker.policy.file import DEFAULT, Policy, Table, covers, table_named
from fetchfleet.worker.policy.model import PolicyError

_decode = msgspec.json.Decoder(dict[str, Any]).decode


async def read(redis: Redis) -> dict[str, Table]:
    """Return every table; malformed ones are left out, as Redis is not trusted."""
    found: Mapping[bytes, bytes] = await redis.hgetall(keys.POLICY)  # type: ignore[misc]
    tables: dict[str, Table] = {}
    for name, text in found.items():
        try:
            tables[name.decode()] = _decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
    return tables


async def change(
    redis: Redis, notify: Notify, host: str, values: Mapping[str, Any | None]
) -> dict[str, Table]:
    """Set keys of a host's table (None removes a key), and notify the lanes it concerns.

    host: a host, a pattern or `default`. Workers apply it within about a second. Returns the tables as they
    are now; raises PolicyError, without any change, if they are invalid.
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
    lanes = [text_of(lane) for lane in await redis.zrange(keys.ATTENTION, 0, -1)]
    concerned = [lane for lane in lanes if name in {DEFAULT, lane} or covers(name, lane)]
    await notify(await reschedule_lanes(redis, concerned))
    return tables


def parsed(pairs: list[str]) -> dict[str, Any]:
    """Parse `key=value` pairs; a value is JSON if it parses, else text. Raises PolicyError."""
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
