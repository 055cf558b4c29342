"""Check a Redis against jobs/keys.py: wrong types, keys without a TTL, stranded fetches."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import redis

from fetchfleet.jobs import keys

NO_TTL = -1
EXPIRED = "none"
"""The reply to TYPE for a key that has expired since it was listed."""

BUSY = {"scheduled", "held"}


def leftovers(url: str) -> list[str]:
    """Return a sentence for each key that violates jobs/keys.py, and for each lane of inconsistent state."""
    with redis.Redis.from_url(url, decode_responses=True, encoding_errors="surrogateescape") as client:
        names = sorted(client.keys("*"))
        kinds, ttls_ms = (_each(client, command, names) for command in ("type", "pttl"))
        rows = [row for row in zip(names, kinds, ttls_ms, strict=True) if row[1] != EXPIRED]
        faults = [fault for name, kind, ttl_ms in rows if (fault := _fault(client, name, kind, ttl_ms))]
        return faults + _lane_faults(client)


def _each(client: Any, command: str, *arguments: Iterable[str]) -> list[Any]:
    """Return the reply to a command for each set of arguments, in one round trip."""
    with client.pipeline(transaction=False) as pipe:
        for words in zip(*arguments, strict=True):
            pipe.execute_command(command, *words)
        replies: list[Any] = pipe.execute()
    return replies


def _fault(client: Any, name: str, kind: str, ttl_ms: int) -> str | None:
    for pattern, expected_kind, may_lack_ttl in _KEYS:
        if match := re.fullmatch(pattern, name):
            if kind != expected_kind:
                return f"{name}: is a {kind}, expected a {expected_kind}"
            if ttl_ms == NO_TTL and not may_lack_ttl(client, match):
                return f"{name}: has no TTL, and no busy lane will remove it"
            return None
    return f"{name}: is a {kind} that jobs/keys.py does not list"


def _lane_faults(client: Any) -> list[str]:
    """Return a sentence for each busy lane that is not in ATTENTION, and for each idle lane that is."""
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


def _lane_is_busy(client: Any, match: re.Match[str]) -> bool:
    return _state(client, match["lane"]) in BUSY


def _members_have_jobs(client: Any, _: re.Match[str]) -> bool:
    """Return whether every member is a job key of arq, which has a TTL."""
    members = client.zrange(keys.QUEUE, 0, -1)
    return all(client.exists(f"arq:job:{member}") for member in members)


def _allowed(_: Any, __: re.Match[str]) -> bool:
    return True


def _forbidden(_: Any, __: re.Match[str]) -> bool:
    return False


_MayLackTtl = Callable[[Any, re.Match[str]], bool]

_NAME = "[a-z0-9][a-z0-9-]{0,31}"

_KEYS: list[tuple[str, str, _MayLackTtl]] = [
    (keys.SERIAL, "string", _allowed),
    (keys.BACKLOG, "string", _allowed),
    (keys.SWEPT, "string", _forbidden),
    (keys.STATUS_LOGGED, "string", _forbidden),
    (keys.WATCHED, "string", _forbidden),
    (keys.CANCELS, "string", _allowed),
    (keys.RESETS, "string", _allowed),
    (keys.POLICY, "hash", _allowed),
    (keys.DRAINS, "hash", _forbidden),
    (keys.HANDED, "hash", _forbidden),
    (keys.POLICY_VERSION, "string", _allowed),
    (keys.BATCHES, "zset", _allowed),
    (keys.WEBHOOKS, "zset", _allowed),  # of batches that have not ended
    (keys.INBOX, "list", _forbidden),
    (keys.TAKEN, "list", _forbidden),
    (rf"{keys.INBOX}(:{_NAME})?:newer", "list", _allowed),
    (rf"{keys.INBOX}:{_NAME}(:taken)?", "list", _forbidden),
    (rf"{keys.INTAKE}(:{_NAME})?", "hash", _forbidden),
    (keys.INBOXES, "set", _allowed),
    (keys.ALL_RESULTS, "stream", _allowed),
    (keys.DEAD, "stream", _allowed),
    (keys.ATTENTION, "zset", _allowed),  # its members are checked by _lane_faults
    (keys.DEATHS, "zset", _forbidden),
    (keys.WORKERS, "zset", _allowed),
    (keys.LACKING, "set", _forbidden),
    (keys.QUEUE, "zset", _members_have_jobs),
    (rf"{keys.QUEUE}:health-check", "string", _forbidden),  # arq's own
    (r"arq:(job|retry|in-progress|result):.+", "string", _forbidden),
    (r"ff:worker:.+", "string", _forbidden),
    (r"ff:policy-file:.+", "string", _forbidden),
    (r"ff:batch:[0-9a-f]{16}", "hash", _forbidden),
    (r"ff:batch:[0-9a-f]{16}:results", "stream", _forbidden),
    (r"ff:batch:[0-9a-f]{16}:lanes", "set", _forbidden),
    (r"ff:batch:[0-9a-f]{16}:digests", "list", _forbidden),
    (r"ff:batch:[0-9a-f]{16}:receipt(:.+)?", "string", _forbidden),
    (r"ff:batch:[0-9a-f]{16}:fetches(:[0-9]+)?", "string", _forbidden),
    (r"ff:key:.+", "string", _forbidden),
    (r"ff:robots:https?://.+", "string", _forbidden),
    (r"ff:claimed:(?P<lane>.+)", "hash", _lane_is_busy),
    (r"ff:later:(?P<lane>.+)", "zset", _lane_is_busy),
    (r"ff:waiting:(?P<lane>.+):(returned|high|normal|low)", "list", _lane_is_busy),
    (r"ff:cancelled:(?P<lane>.+)", "set", _forbidden),
    (r"ff:lane:(?P<lane>.+)", "hash", _lane_is_busy),
]
