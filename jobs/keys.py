"""Every Redis key, with its type and how long it lives. No key is spelt anywhere else.

arq keeps keys of its own (`arq:job:…`, `arq:retry:…`, `arq:in-progress:…`) for the jobs on QUEUE;
they expire by arq's rules.
"""

QUEUE = "ff:queue"
"""zset, arq's queue: one job for each lane that is due. Members go when the job ends."""

SERIAL = "ff:serial"
"""string, a counter that gives generations and fencing tokens. Lives for ever: it must never go back."""

ATTENTION = "ff:attention"
"""zset: lane → Unix ms when somebody must look at it (lease end, or due time + grace).
A lane is in it as long as it is not idle."""

DEAD = "ff:dead"
"""stream: what was found in a lane and is no entry, with the reason. Trimmed to DEAD_LENGTH."""

DEAD_LENGTH = 10_000

RESULTS_TTL_MS = 24 * 3600 * 1000
"""How long a finished batch is kept after its last result."""

UNFINISHED_TTL_MS = 9 * 24 * 3600 * 1000
"""How long a batch lives after its last change while fetches are open: more than any deadline."""

GATE_TTL_MS = 2 * 3600 * 1000
"""How long an idle lane remembers how its host behaved: more than the longest cool-down."""

WORKER_TTL_MS = 5_000
"""How long a worker counts as alive after its last sign of life."""


def batch(batch_id: str) -> str:
    """hash: total, sealed, chunks, done, bytes, created_ms and a count for each outcome.

    RESULTS_TTL_MS after the last result, UNFINISHED_TTL_MS before that.
    """
    return f"ff:batch:{batch_id}"


def results(batch_id: str) -> str:
    """stream: field `r` holds a result as JSON. Lives as long as its batch."""
    return f"ff:batch:{batch_id}:results"


def lane(name: str) -> str:
    """hash: state, generation, due_ms, shut_until_ms, why, owner, token, gate.

    No TTL while the lane is not idle, GATE_TTL_MS when it is.
    """
    return f"ff:lane:{name}"


def claimed(name: str) -> str:
    """hash: fetch id → element of what the lane's owner is at work on. Gone when empty."""
    return f"ff:lane:{name}:claimed"


def later(name: str) -> str:
    """zset: element → Unix ms of its next attempt. Gone when empty."""
    return f"ff:lane:{name}:later"


def waiting(name: str) -> tuple[str, str, str, str]:
    """Lists of elements, in the order they are served: handed back, high, normal, low. Gone when empty."""
    return (
        f"ff:lane:{name}:returned",
        f"ff:lane:{name}:high",
        f"ff:lane:{name}:normal",
        f"ff:lane:{name}:low",
    )


def waiting_at(name: str, priority: str) -> str:
    """The list in which fetches of that priority wait."""
    return f"ff:lane:{name}:{priority}"


def worker(worker_id: str) -> str:
    """string: what a worker says of itself, JSON. WORKER_TTL_MS."""
    return f"ff:worker:{worker_id}"


WORKERS = "ff:workers"
"""zset: worker id → Unix ms of its last sign of life. Members older than WORKER_TTL_MS are removed
by the next sign of life of any worker."""


def wake_job(lane_name: str, generation: int) -> str:
    """The arq job id of one hand-off of a lane."""
    return f"lane:{lane_name}:{generation}"
