"""Values of the wrong type for Redis keys, with a pickle that reveals whether it is loaded."""

import pickle
from pathlib import Path

from redis.asyncio import Redis

from tests.support.lanes import ask

TYPES = ("string", "list", "hash", "set", "zset", "stream")


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


async def plant_value(redis: Redis, key: str, kind: str, canary: Path) -> None:
    """Replace the key by a value of this type."""
    text = pickle.dumps(Canary(canary))
    commands: dict[str, tuple[str | bytes, ...]] = {
        "string": ("SET", key, text),
        "list": ("RPUSH", key, text),
        "hash": ("HSET", key, "state", text),
        "set": ("SADD", key, text),
        "zset": ("ZADD", key, "1", text),
        "stream": ("XADD", key, "*", "r", text),
    }
    await redis.delete(key)
    await ask(redis, *commands[kind])


def other_type(kind: str, turn: int) -> str:
    """Return a type other than `kind`; turns 0 to 4 give each of the five."""
    others = [name for name in TYPES if name != kind]
    return others[turn % len(others)]
