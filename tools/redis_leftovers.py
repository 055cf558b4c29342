"""Check a Redis against jobs/keys.py: wrong types, keys without a TTL, stranded fetches."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import redis

from fetchfleet.jobs import keys

NO_TTL = -1
GONE = "none"
"""The type of a key that has expired since it was listed."""

BUSY = {"scheduled", "held"}


def leftovers(url: str) -> list[str]:
    """Return a line for each key that violates jobs/keys.py."""
    with redis.Redis.from_url(url, decode_responses=True, encoding_errors="surrogateescape") as client:
        names = sorted(client.keys("*"))
        kinds, ttls_ms = (_each(client, ask, names) for ask in ("type", "pttl"))
        found = zip(names, kinds, ttls_ms, strict=True)
        there = (one for one in found if one[1] != GONE)
        faults = [fault for name, kind, ttl in there if (fault := _fault(client, name, kind, ttl))]
        return faults + _unattended(client)


def _each(client: Any, ask: str, *arguments: Iterable[str]) -> list[Any]:
    """Return the replies to one command on each of the arguments, asked in one round trip."""
    with client.pipeline(transaction=False) as pipe:
        for words in zip(*arguments, strict=True):
            pipe.execute_command(ask, *words)
        replies: list[Any] = pipe.execute()
    return replies


def _fault(client: Any, name: str, kind: str, ttl_ms: int) -> str | None:
    for pattern, want, may_stay in _KEYS:
        if match := re.fullmatch(pattern, name):
            if kind != want:
                return f"{name}: is a {kind}, not a {want}"
            if ttl_ms == NO_TTL and not may_stay(client, match):
                return f"{name}: has no TTL and no lane that will remove it"
            return None
    return f"{name}: a {kind} that jobs/keys.py does not name"


def _unattended(client: Any) -> list[str]:
    """Return a line for each busy lane that is not in ATTENTION, and each idle one that is."""
    watched = set(client.zrange(keys.ATTENTION, 0, -1))
    lanes = client.keys("ff:lane:*")
    states = _each(client, "hget", lanes, ["state"] * len(lanes))
    names = [lane.removeprefix("ff:lane:") for lane in lanes]
    busy = {name for name, state in zip(names, states, strict=True) if state in BUSY}
    return [
        *(f"lane {name} is busy but not in {keys.ATTENTION}" for name in sorted(busy - watched)),
        *(f"lane {name} is idle but in {keys.ATTENTION}" for name in sorted(watched - busy)),
    ]


def _state(client: Any, lane: str) -> str | None:
    state: str | None = client.hget(keys.lane(lane), "state")
    return state


def _of_busy_lane(client: Any, match: re.Match[str]) -> bool:
    return _state(client, match["lane"]) in BUSY


def _only_known_jobs(client: Any, _: re.Match[str]) -> bool:
    """Return whether every member is a job key of arq, which has a TTL."""
    members = client.zrange(keys.QUEUE, 0, -1)
    return all(client.exists(f"arq:job:{member}") for member in members)


def _for_ever(_: Any, __: re.Match[str]) -> bool:
    return True


def _never(_: Any, __: re.Match[str]) -> bool:
    return False


_MayStay = Callable[[Any, re.Match[str]], bool]


_NAME = "[a-z0-9][a-z0-9-]{0,31}"

_KEYS: list[tuple[str, str, _MayStay]] = [
    (keys.SERIAL, "string", _for_ever),
    (keys.BACKLOG, "string", _for_ever),
    (keys.SWEPT, "string", _never),
    (keys.CANCELS, "string", _for_ever),
    (keys.RESETS, "string", _for_ever),
    (keys.POLICY, "hash", _for_ever),
    (keys.DRAINS, "hash", _never),
    (keys.HANDED, "hash", _never),
    (keys.POLICY_VERSION, "string", _for_ever),
    (keys.BATCHES, "zset", _for_ever),
    (keys.INBOX, "list", _never),
    (keys.TAKEN, "list", _never),
    (rf"{keys.INBOX}(:{_NAME})?:newer", "list", _for_ever),
    (rf"{keys.INBOX}:{_NAME}(:taken)?", "list", _never),
    (rf"{keys.INTAKE}(:{_NAME})?", "hash", _never),
    (keys.INBOXES, "set", _for_ever),
    (keys.ALL_RESULTS, "stream", _for_ever),
    (keys.DEAD, "stream", _for_ever),
    (keys.ATTENTION, "zset", _for_ever),  # its members are checked by _unattended
    (keys.DEATHS, "zset", _never),
    (keys.WORKERS, "zset", _for_ever),
    (keys.LACKING, "set", _never),
    (keys.QUEUE, "zset", _only_known_jobs),
    (rf"{keys.QUEUE}:health-check", "string", _never),  # arq's own
    (r"arq:(job|retry|in-progress|result):.+", "string", _never),
    (r"ff:worker:.+", "string", _never),
    (r"ff:policy-file:.+", "string", _never),
    (r"ff:batch:[0-9a-f]{16}", "hash", _never),
    (r"ff:batch:[0-9a-f]{16}:results", "stream", _never),
    (r"ff:batch:[0-9a-f]{16}:lanes", "set", _never),
    (r"ff:batch:[0-9a-f]{16}:digests", "list", _never),
    (r"ff:batch:[0-9a-f]{16}:receipt(:.+)?", "string", _never),
    (r"ff:batch:[0-9a-f]{16}:fetches(:[0-9]+)?", "string", _never),
    (r"ff:key:.+", "string", _never),
    (r"ff:robots:https?://.+", "string", _never),
    (r"ff:claimed:(?P<lane>.+)", "hash", _of_busy_lane),
    (r"ff:later:(?P<lane>.+)", "zset", _of_busy_lane),
    (r"ff:waiting:(?P<lane>.+):(returned|high|normal|low)", "list", _of_busy_lane),
    (r"ff:cancelled:(?P<lane>.+)", "set", _never),
    (r"ff:lane:(?P<lane>.+)", "hash", _of_busy_lane),
]
