"""Raw commands with which a Redis user may try to disturb a fleet, or to read data of other users."""

import json
from collections.abc import Sequence
from typing import Any

from fetchfleet import Fetch
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import Entry, Hop, serialize_entry
from tests.support.lanes import NEVER_MS

Words = tuple[str | bytes | int, ...]

FOREIGN_BATCH = "00ff00ff00ff00ff"
LANES = ("a.example", "b.example", "c.example")


def element(fetch_id: str, url: str, **fields: Any) -> bytes:
    """Return a serialized entry that was never submitted."""
    return serialize_entry(Entry(id=fetch_id, deadline_ms=NEVER_MS, fetch=Fetch(url=url), **fields))


def forged_in_lanes(host: str, base: str, victim: str, others: Sequence[str] = LANES) -> dict[str, Words]:
    """Return commands whose effect workers undo: entries of lanes, and members of the queue.

    host: the lane of the URLs below `base`. victim: the ID of another user's batch. others: further lanes.
    """
    lane, foreign = keys.waiting_at(host, "high"), (f"{FOREIGN_BATCH}-{place:08x}" for place in range(100))
    upload = Hop("POST", f"{base}/upload", body_file="../../../etc/passwd")
    split = Hop("GET", f"{base}/split", (("X", "a\r\nY: b"),))
    return {
        "a file outside of the in folder": ("RPUSH", lane, element(next(foreign), base, hop=upload, hops=1)),
        "a header that splits a request": ("RPUSH", lane, element(next(foreign), base, hop=split, hops=1)),
        "an endless number of attempts": ("RPUSH", lane, element(next(foreign), base, attempts=-10)),
        **{
            f"a fetch of the host in the lane {other}": (
                *("RPUSH", keys.waiting_at(other, "high")),
                *(element(next(foreign), f"{base}/elsewhere") for _ in range(4)),
            )
            for other in others
        },
        "ids of another batch": (
            *("RPUSH", lane),
            *(element(f"{victim}-{place:08x}", f"{base}/stolen") for place in (0, 1, 2, 900)),
        ),
        "a batch that does not exist": ("RPUSH", lane, element(next(foreign), f"{base}/none")),
        "no entry": ("RPUSH", lane, b"\xff" * 100),
        "a large entry": ("RPUSH", lane, b"x" * (1 << 20)),
        "foreign members of the queue": (
            *("ZADD", keys.QUEUE),
            *(word for place in range(1000) for word in (("0", "-inf", "inf", "1")[place % 4], f"z{place}")),
        ),
    }


def counts_of_others(victim: str) -> dict[str, Words]:
    """Return commands that falsify counters or delete a batch. Nothing prevents them: the user is trusted."""
    return {
        "counters of another batch": ("HSET", keys.batch(victim), "stored", 3),
        "the end of another batch": ("PEXPIRE", keys.batch(victim), 1),
        "a backlog that is too small": ("INCRBY", keys.BACKLOG, -16),
    }


ENDLESS = "redis.call('INCR', KEYS[1]); while true do end"

SERIALS: dict[str, Words] = {
    "a serial number out of bounds": ("INCRBY", keys.SERIAL, 990_000_000_000_000_000),
}
SCRIPTS: dict[str, Words] = {
    "an endless script": ("EVAL", ENDLESS, 1, keys.SERIAL),
    "a script that stays loaded": ("SCRIPT", "LOAD", ENDLESS),
}


def results_of_others(victim: str) -> dict[str, Words]:
    """Return commands that write results, or read those of another user's batch."""
    return {
        "a result of another batch": ("XADD", keys.results(victim), "*", "r", "{}"),
        "a result of all batches": ("XADD", keys.ALL_RESULTS, "*", "r", "{}"),
        "a serial number that decreases": ("SET", keys.SERIAL, 0),
        "a fetch that is claimed": ("HSET", keys.claimed(LANES[0]), f"{victim}-00000000", "x"),
        "a dead letter": ("XADD", keys.DEAD, "*", "element", "x"),
    }


SERVER: dict[str, Words] = {
    "all scripts removed": ("SCRIPT", "FLUSH"),
    "a library": ("FUNCTION", "LOAD", "#!lua name=x\nredis.register_function('f', function() end)"),
    "clients paused": ("CLIENT", "PAUSE", 1000),
    "clients killed": ("CLIENT", "KILL", "TYPE", "normal"),
    "a server that sleeps": ("DEBUG", "SLEEP", 1),
    "all keys deleted": ("FLUSHALL",),
    "a memory limit": ("CONFIG", "SET", "maxmemory", 1),
    "a change to a replica": ("REPLICAOF", "127.0.0.1", 1),
    "a user with every right": ("ACL", "SETUSER", "default", "on", "nopass", "+@all"),
    "commands of all clients": ("MONITOR",),
}


def pushed(own: str, victim: str, base: str) -> list[str]:
    """Return messages of a pusher that target batches and files of others.

    own: the ID of a batch of its inbox. victim: the ID of another user's batch. base: a URL.
    """
    to_victim = {"batch": victim, "fetches": [f"{base}/pushed"]}
    orders = [
        {"cancel": victim},
        to_victim,
        {**to_victim, "part": 1, "last": True},
        {**to_victim, "receipt": "r"},
        {"batch": own, "receipt": f"x:{victim}", "fetches": [base]},
        {"batch": own, "fetches": [{"url": base, "method": "POST", "body_file": "../../../etc/passwd"}]},
        {"batch": own, "fetches": [{"url": base, "attempts": -10}]},
        {"batch": own, "fetches": [{"url": base, "headers": {"X": "a\r\nY: b"}}]},
        {"url": base, "dest": "../outside"},
        {"url": base, "hop": ["GET", base]},
        *({"v": 999, "n": place} for place in range(1000)),
    ]
    return ["", "\x80", "[" * 5000, *(json.dumps(order) for order in orders)]


def flood(inbox: str, count: int) -> Words:
    """Return a command that pushes messages of a version that only a newer worker reads."""
    return ("RPUSH", keys.inbox(inbox), *(json.dumps({"v": 999, "n": place}) for place in range(count)))
