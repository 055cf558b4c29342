"""What something else may put at a Redis key: every type, and a pickle that would tell if it were loaded."""

import pickle
from pathlib import Path

from redis.asyncio import Redis

from tests.support.lanes import ask

TYPES = ("string", "list", "hash", "set", "zset", "stream")


class Canary:
    """Loaded from a pickle it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


async def plant(redis: Redis, key: str, kind: str, canary: Path) -> None:
    """Put something of that type in the key's place."""
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


def another(kind: str, turn: int) -> str:
    """A type that a key of this kind must not have: each of them in five turns."""
    others = [name for name in TYPES if name != kind]
    return others[turn % len(others)]
