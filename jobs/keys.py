"""Every Redis key, with its type and its lifetime. No other module spells a key.

arq keeps keys of its own (`arq:job:…`, `arq:retry:…`, `arq:in-progress:…`, `arq:result:…`,
`ff:queue:health-check`) for the jobs on QUEUE; they expire by arq's rules.

What producers write and what only workers may see are under different prefixes, so that an ACL can
tell them apart (ops/users.acl).
"""

PREFIX = "ff:"
"""Of every key here. Those of arq begin with ARQ_PREFIX."""

ARQ_PREFIX = "arq:"

QUEUE = "ff:queue"
"""zset, arq's queue: one job for each lane that is due. Members are removed when the job ends."""

SERIAL = "ff:serial"
"""string, a counter that gives generations and fencing tokens. Lives for ever: it must never go back."""

ATTENTION = "ff:attention"
"""zset: lane → Unix ms when the sweep must reclaim it (lease end, or due time + grace).
A lane is a member while it is not idle."""

SWEPT = "ff:swept"
"""string: Unix ms of the last sweep, so that one worker at a time sweeps. SWEPT_TTL_MS."""

SWEPT_TTL_MS = 60_000

BACKLOG = "ff:backlog"
"""string: how many fetches are submitted and have no result yet, in all lanes. Lives for ever."""

INBOX = "ff:inbox"
"""list: inbox messages, pushed from any language (docs/api.md). Gone when empty."""

TAKEN = "ff:inbox:taken"
"""list: messages out of the inbox that a worker is enqueuing. Gone when empty."""

NEWER = "ff:inbox:newer"
"""list: messages that only a newer worker reads, each behind its version and a space."""

NEWER_LENGTH = 10_000
NEWER_BYTES = 64 << 20
"""The limits of NEWER, and of the same list of each named inbox. What does not fit becomes a dead letter."""

INBOXES = "ff:inboxes"
"""set: the names of the inboxes that operators have registered. Lives for ever."""

INTAKE = "ff:intake"
"""hash: the worker that empties the inboxes: token, until_ms, reads (the version that it reads, and its
token), the batch that TAKEN becomes, and the bytes in NEWER (newer_bytes).

INTAKE_TTL_MS, but no TTL while TAKEN is not empty: its batch must stay known if no worker runs for long.
"""

INTAKE_TTL_MS = 3600 * 1000

ALL_RESULTS = "ff:results"
"""stream, for consumer groups: field `r` holds a result as JSON, of every batch. Lives for ever; the
housekeeping trims it to the settings' length and to RESULTS_TTL_MS."""

POLICY = "ff:policy"
"""hash: host, pattern or `default` → JSON table laid over the workers' policy files. Lives for ever.

`!` and such a name → JSON array: whether its `paused` is a pause or an exception, and since when (Unix ms).
Versions that know no such fields skip them, because they are no tables.
"""

POLICY_VERSION = "ff:policy-version"
"""string, a counter: goes up with each change of POLICY. Lives for ever."""

DEAD = "ff:dead"
"""stream of dead letters: failed fetches, and input that is not a fetch; door, reason, note, lane, id and
element, the serialized entry or the input. Lives for ever, trimmed to DEAD_LENGTH."""

DEAD_LENGTH = 100_000

BATCHES = "ff:batches"
"""zset: batch id → Unix ms of its making. The sweep removes those that have expired."""

CANCELS = "ff:cancels"
"""string, a counter: whenever a batch is cancelled in a lane it goes up. Lives for ever."""

RESETS = "ff:resets"
"""string, a counter: whenever an operator resets a lane it goes up. Lives for ever."""

RESULTS_TTL_MS = 24 * 3600 * 1000
"""How long a finished batch is kept after its last result."""

UNFINISHED_TTL_MS = 9 * 24 * 3600 * 1000
"""How long a batch lives after its last change while fetches are open: more than any deadline."""

GATE_TTL_MS = 2 * 3600 * 1000
"""How long an idle lane keeps its gate's state: more than the longest cool-down."""

LONGEST_WAIT_MS = 4 * 24 * 3600 * 1000
"""No lane needs attention later than that: more than any wait that a policy allows (jobs/lua/_common.lua)."""

WORKER_TTL_MS = 5_000
"""How long a worker counts as alive after its last heartbeat."""


KEY_TTL_MS = 24 * 3600 * 1000
"""How long a fetch's `key` stands for that fetch, or as long as its deadline if that is longer."""


def batch(batch_id: str) -> str:
    """hash: total, sealed, chunks, taken_ms, done, bytes, created_ms, cancel_ms, retried_as.

    Also a count for each outcome, recorded, recorded_done and last_deadline_ms.

    retried_as: the batches in which failed fetches of it were submitted again, joined by spaces.

    chunks: how many of its chunks are in; taken_ms: when the last of them was taken, in Unix ms.
    recorded: how many of its chunks are in its `record`, which counts only if it has every one: older
    producers write none. recorded_done: how many of its results ended a fetch in the record.
    last_deadline_ms: no fetch of a recorded chunk has a later deadline.
    RESULTS_TTL_MS after the last result, UNFINISHED_TTL_MS before that.
    """
    return f"ff:batch:{batch_id}"


def results(batch_id: str) -> str:
    """stream: field `r` holds a result as JSON.

    Lives as long as its batch; UNFINISHED_TTL_MS if the batch was sealed after its last result.
    """
    return f"ff:batch:{batch_id}:results"


def batch_lanes(batch_id: str) -> str:
    """set: the lanes that fetches of the batch have gone to. Lives as long as its batch."""
    return f"ff:batch:{batch_id}:lanes"


def digests(batch_id: str) -> str:
    """list: a digest of what each chunk held. Lives as long as its batch."""
    return f"ff:batch:{batch_id}:digests"


def receipt(batch_id: str, name: str = "") -> str:
    """string: what became of a message that names this batch, JSON. RECEIPT_TTL_MS.

    name: of the receipt that the message asks for; "" for that of the latest message.
    """
    return f"ff:batch:{batch_id}:receipt:{name}" if name else f"ff:batch:{batch_id}:receipt"


RECEIPT_TTL_MS = 24 * 3600 * 1000


def inbox(name: str = "") -> str:
    """list: messages of one pusher; "" for those of INBOX. Gone when empty."""
    return f"{INBOX}:{name}" if name else INBOX


def taken(name: str = "") -> str:
    """list: as TAKEN, for a named inbox."""
    return f"{INBOX}:{name}:taken" if name else TAKEN


def newer(name: str = "") -> str:
    """list: as NEWER, for a named inbox."""
    return f"{INBOX}:{name}:newer" if name else NEWER


def intake(name: str = "") -> str:
    """hash: as INTAKE, for a named inbox: batch and newer_bytes. The worker is that of INTAKE."""
    return f"{INTAKE}:{name}" if name else INTAKE


def kinds_of_inbox(name: str = "") -> dict[str, str]:
    """Return the keys of an inbox with their kinds."""
    return {**dict.fromkeys((inbox(name), taken(name), newer(name)), "list"), intake(name): "hash"}


RECORD_SUFFIX = ":fetches"
"""The suffix of the key of a batch's record."""

RECORD_SEGMENT_PLACES = 1 << 20
"""How many fetches one string of a record has: 6 MiB of the 512 that a string may have."""


def record(batch_id: str, place: int = 0) -> str:
    """string, a bitfield of a u48 for each place of the batch: its open fetch, 0 once that has ended.

    The number is (fingerprint of the fetch + its deadline in Unix ms) mod 2^48, or 1 in place of 0
    (jobs/contract/entry.py, record_of). The second RECORD_SEGMENT_PLACES are in a second string, and so on.
    UNFINISHED_TTL_MS after the last submit; gone when the batch has ended.
    """
    segment = place // RECORD_SEGMENT_PLACES
    return batch(batch_id) + RECORD_SUFFIX + (f":{segment}" if segment else "")


def key(text: str) -> str:
    """string: the id of the fetch that has this `key`, with + behind it once another batch was given it.

    KEY_TTL_MS, or the fetch's deadline if that is longer.
    """
    return f"ff:key:{text}"


def robots(origin: str) -> str:
    """string: the origin's robots.txt, JSON. A day at most, an hour if the origin has none."""
    return f"ff:robots:{origin}"


def lane(name: str) -> str:
    """hash: state, generation, due_ms, shut_until_ms, why, owner, last_owner, token, gate, open, earliest_ms.

    reset, also a field: the operator who has reset the lane, until a worker has applied that;
    open: how many of its fetches have no result yet; earliest_ms: no deadline of those that wait is earlier;
    estimated, also a field: open was counted from the lane's lists, of which BACKLOG may not have all;
    needs, also a field: of a fetch for which the lane is left to others (worker/fetch/cases/handover.py);
    left, also a field: the token under which the last settlements gave the lane back;
    last_owner: the worker whose lease lapsed, until the next one takes over its claims.
    No TTL while the lane is not idle, GATE_TTL_MS when it is.
    """
    return f"ff:lane:{name}"


def claimed(name: str) -> str:
    """hash: fetch id → serialized entry of what the lane's owner works on. Gone when empty."""
    return f"ff:claimed:{name}"


def later(name: str) -> str:
    """zset: serialized entry → Unix ms of its next attempt. Gone when empty."""
    return f"ff:later:{name}"


def cancelled(name: str) -> str:
    """set: cancelled batches whose fetches are still to be taken out of the lane. UNFINISHED_TTL_MS."""
    return f"ff:cancelled:{name}"


def waiting(name: str) -> tuple[str, str, str, str]:
    """Lists of serialized entries in the order they are served: returned, high, normal, low."""
    return (
        f"ff:waiting:{name}:returned",
        f"ff:waiting:{name}:high",
        f"ff:waiting:{name}:normal",
        f"ff:waiting:{name}:low",
    )


def waiting_at(name: str, priority: str) -> str:
    """Return the list of the entries that wait with this priority ("returned": were handed back)."""
    return f"ff:waiting:{name}:{priority}"


LANE_QUEUES = ("returned", "high", "normal", "low", "later")
"""The queues of a lane: four lists in the order they are served, and the retries."""


LANE_KEYS = "ff:[clw]*"
"""Matches every key of a lane, and few others."""


def lane_of(key: str) -> str:
    """Return the name of the lane whose fetches or state the key holds; empty if it is no such key."""
    for prefix in (lane(""), claimed(""), later("")):
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    prefix = waiting_at("", "").removesuffix(":")
    return key.removeprefix(prefix).rpartition(":")[0] if key.startswith(prefix) else ""


def lane_queue(name: str, queue: str) -> str:
    """The key of one of LANE_QUEUES."""
    return later(name) if queue == "later" else waiting_at(name, queue)


def worker(instance: str) -> str:
    """string: the report of a worker's instance, JSON. WORKER_TTL_MS."""
    return f"ff:worker:{instance}"


DEATHS = "ff:deaths"
"""zset: worker id → Unix ms when a lane was taken from it because its lease had lapsed. Gone DEATHS_WINDOW_MS
after the last. They tell a fetch that kills from one that is hit (worker/fetch/rules/crashes.py)."""

DEATHS_WINDOW_MS = 60_000


def policy_file(digest: str) -> str:
    """string: the policy file with that digest, JSON without private values (worker/policy/published.py).

    POLICY_FILE_TTL_MS; the heartbeats of the workers that use it renew that.
    """
    return f"ff:policy-file:{digest}"


POLICY_FILE_TTL_MS = 60_000

WORKERS = "ff:workers"
"""zset: worker instance → Unix ms of its last heartbeat. Members older than WORKER_TTL_MS are removed by the
next heartbeat of any worker."""


LACKING = "ff:lacking"
"""set: the instances of live workers that cannot store bodies. They start no fetch and are not in WORKERS, so
that the others share their lanes. WORKER_TTL_MS after the last heartbeat of such a worker."""

DRAINS = "ff:drains"
"""hash: worker instance → Unix ms since when an operator has drained it, 0 once it is to take lanes again.
The worker removes its field then, and at its end; a field of a worker that was killed stays until the next
drain. Gone when empty."""


HANDED = "ff:handed"
"""hash: lane → the needs of a fetch in it that the worker which had the lane does not meet. A worker that
does takes the lane, which removes the field. HANDED_TTL_MS after the last was added."""

HANDED_TTL_MS = 60_000


FIXED: dict[str, str] = {
    **dict.fromkeys((SERIAL, BACKLOG, POLICY_VERSION, CANCELS, RESETS), "counter"),
    **dict.fromkeys((QUEUE, ATTENTION, BATCHES, DEATHS, WORKERS), "zset"),
    **dict.fromkeys((INBOX, TAKEN, NEWER), "list"),
    INBOXES: "set",
    **dict.fromkeys((INTAKE, POLICY, DRAINS, HANDED), "hash"),
    LACKING: "set",
    **dict.fromkeys((ALL_RESULTS, DEAD), "stream"),
}
"""The keys that exist once in a fleet, with their kinds: a Redis type, or counter for a counting string."""


def kinds_of_lane(name: str) -> dict[str, str]:
    """Return the keys of a lane with their kinds."""
    lists = dict.fromkeys(waiting(name), "list")
    return {lane(name): "hash", claimed(name): "hash", later(name): "zset", cancelled(name): "set", **lists}


def kinds_of_batch(batch_id: str) -> dict[str, str]:
    """Return the keys of a batch with their kinds."""
    kinds = {batch(batch_id): "hash", results(batch_id): "stream"}
    return {**kinds, batch_lanes(batch_id): "set", digests(batch_id): "list", record(batch_id): "string"}


def arq_job(job_id: str) -> str:
    """string: a job of arq, as JSON. arq's own, and its TTL."""
    return f"arq:job:{job_id}"


def arq_in_progress(job_id: str) -> str:
    """string: a worker runs the job. arq's own, and its TTL."""
    return f"arq:in-progress:{job_id}"


def arq_tries(job_id: str) -> str:
    """string: how often the job was begun. arq's own, and its TTL."""
    return f"arq:retry:{job_id}"


ARQ_ABORTS = "arq:abort"
"""zset: the jobs to abort. arq's own; each job that ends is removed from it."""


def notification_job_id(lane_name: str, generation: int) -> str:
    """Return the arq job id of one notification."""
    return f"lane:{lane_name}:{generation}"
