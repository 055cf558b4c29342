"""The lanes that an operator means by a name."""

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import is_text
from fetchfleet.worker.policy.names import DEFAULT, EVERY_HOST_BELOW

AT_ONCE = 1000


async def lanes_of(redis: Redis, name: str, *, at_most: int | None = None) -> list[str]:
    """Return the lanes that a host, a pattern or `default` names and Redis knows, the idle ones too.

    A host costs one command. A pattern costs a walk through the keys of Redis, a stretch at a time.
    """
    if name != DEFAULT and not name.startswith(EVERY_HOST_BELOW):
        return [name] if await redis.exists(keys.lane(name)) else []
    prefix, suffix = keys.lane(""), "" if name == DEFAULT else name.removeprefix("*")
    found: list[str] = []
    async for key in redis.scan_iter(match=f"{prefix}*{suffix}", count=AT_ONCE):
        if is_text(key):
            found.append(key.decode().removeprefix(prefix))
        if len(found) == at_most:
            break
    return sorted(set(found))
