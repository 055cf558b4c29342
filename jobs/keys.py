"""Every Redis key, with its type and lifetime. No other module contains a key.

A description begins with the type. Keys without a stated lifetime never expire. arq has its own keys for the
jobs on QUEUE: `arq:job:…`, `arq:retry:…`, `arq:in-progress:…`, `arq:result:…`, `ff:queue:health-check`.

Keys that producers write and keys for workers only have different prefixes, for ACLs (ops/users.acl).
"""

PREFIX = "ff:"
"""Prefix of every key of fetchfleet. Keys of arq begin with ARQ_PREFIX."""

ARQ_PREFIX = "arq:"

QUEUE = "ff:queue"
"""zset, the queue of arq: job ID → time in Unix ms. A job is removed when it ends."""

SERIAL = "ff:serial"
"""string, counter: the last generation or fencing token. It must never decrease."""

ATTENTION = "ff:attention"
"""zset: lane → Unix ms when the sweep must reclaim it: the end of its lease, or its due time and a grace.

A lane is a member while it is not idle."""

SWEPT = "ff:swept"
"""string: Unix ms of the last sweep, so that one worker sweeps at a time. Expires after TURN_TTL_MS."""

STATUS_LOGGED = "ff:status-logged"
"""string: Unix ms of the last `fleet.status`, so that one worker logs it. Expires after TURN_TTL_MS."""

TURN_TTL_MS = 60_000

BACKLOG = "ff:backlog"
"""string, counter: fetches without a result, in all lanes."""

INBOX = "ff:inbox"
"""list: inbox messages, pushed from any language (docs/api.md)."""

TAKEN = "ff:inbox:taken"
"""list: inbox messages that a worker is enqueueing."""

NEWER = "ff:inbox:newer"
"""list: deferred messages, which need a newer worker; each follows its version and a space."""

NEWER_LENGTH = 10_000
NEWER_BYTES = 64 << 20
"""Limits of NEWER, and of that list of each named inbox. Further messages become dead letters."""

INBOXES = "ff:inboxes"
"""set: names of the registered inboxes."""

INTAKE = "ff:intake"
"""hash: the lease of the worker that empties the inboxes, and the state of the shared inbox.

token, until_ms: the lease. reads: the newest version that the worker reads, and its token. batch: the ID
under which TAKEN is enqueued. newer_bytes: the size of NEWER.

Expires after INTAKE_TTL_MS, but not while TAKEN has messages, whose batch ID must be kept.
"""

INTAKE_TTL_MS = 3600 * 1000

ALL_RESULTS = "ff:results"
"""stream, for consumer groups: results of every batch, as JSON in the field `r`.

Trimmed by the housekeeping, to the length of the settings and to RESULTS_TTL_MS."""

POLICY = "ff:policy"
"""hash: host, pattern or `default` → JSON table that overrides the workers' policy files.

`!` and such a name → JSON array: whether its `paused` is a pause or an exception, and since when (Unix ms).
Older versions skip these fields, because they are not tables.
"""

POLICY_VERSION = "ff:policy-version"
"""string, counter of the changes of POLICY."""

DEAD = "ff:dead"
"""stream of dead letters: failed fetches, and input that is not a fetch. Trimmed to about DEAD_LENGTH.

Fields: door, reason, note, lane, id, and element, which is the serialized entry or the input."""

DEAD_LENGTH = 100_000

BATCHES = "ff:batches"
"""zset: batch ID → Unix ms of its first submit. The sweep removes expired batches."""

WEBHOOKS = "ff:webhooks"
"""zset: batch with a webhook → Unix ms when the sweep last checked whether it has ended.

A batch is removed once its webhook is enqueued."""

CANCELS = "ff:cancels"
"""string, counter of the cancellations of a batch in a lane."""

RESETS = "ff:resets"
"""string, counter of the resets of a lane by an operator."""

RESULTS_TTL_MS = 24 * 3600 * 1000
"""Time for which a finished batch is kept after its last result."""

UNFINISHED_TTL_MS = 9 * 24 * 3600 * 1000
"""Time for which a batch with open fetches is kept after its last change: more than any deadline."""

GATE_TTL_MS = 2 * 3600 * 1000
"""Time for which an idle lane keeps the state of its gate: more than the longest cool-down."""

LONGEST_WAIT_MS = 4 * 24 * 3600 * 1000
"""The maximum time until a lane needs attention: more than any wait of a policy (jobs/lua/_common.lua)."""

WORKER_TTL_MS = 5_000
"""Time for which a worker counts as alive after its last heartbeat."""


KEY_TTL_MS = 24 * 3600 * 1000
"""The minimum time for which a `key` belongs to its fetch; the time until its deadline if that is longer."""


def batch(batch_id: str) -> str:
    """hash: the counters and the state of a batch. Times are in Unix ms.

    total, sealed, done, bytes, and a count for each outcome. created_ms, cancel_ms.
    retried_as: the batches in which its failed fetches were submitted again, joined by spaces.
    chunks: number of enqueued chunks. taken_ms: when the last of them was enqueued.
    recorded: number of chunks in its `record`, which is used only if all are; older producers write none.
    recorded_done: number of its results that ended a fetch in the record.
    last_deadline_ms: latest deadline of a recorded chunk.
    notify: URL of its webhook. ended_ms: when the sweep found that a batch with a webhook has ended.
    Expires RESULTS_TTL_MS after the last result; before that, UNFINISHED_TTL_MS after the last change.
    """
    return f"ff:batch:{batch_id}"


def results(batch_id: str) -> str:
    """stream: results of the batch, as JSON in the field `r`.

    Expires with the batch; UNFINISHED_TTL_MS after the last result if the batch was sealed later.
    """
    return f"ff:batch:{batch_id}:results"


def batch_lanes(batch_id: str) -> str:
    """set: lanes that have had fetches of the batch. Expires with the batch."""
    return f"ff:batch:{batch_id}:lanes"


def digests(batch_id: str) -> str:
    """list: digest of each chunk. Expires with the batch."""
    return f"ff:batch:{batch_id}:digests"


def receipt(batch_id: str, name: str = "") -> str:
    """string: receipt of a message that names this batch, as JSON. Expires after RECEIPT_TTL_MS.

    name: name of the receipt in the message; "" for the receipt of the latest message.
    """
    return f"ff:batch:{batch_id}:receipt:{name}" if name else f"ff:batch:{batch_id}:receipt"


RECEIPT_TTL_MS = 24 * 3600 * 1000


def inbox(name: str = "") -> str:
    """list: messages of a named inbox; "" for INBOX."""
    return f"{INBOX}:{name}" if name else INBOX


def taken(name: str = "") -> str:
    """list: TAKEN of a named inbox."""
    return f"{INBOX}:{name}:taken" if name else TAKEN


def newer(name: str = "") -> str:
    """list: NEWER of a named inbox."""
    return f"{INBOX}:{name}:newer" if name else NEWER


def intake(name: str = "") -> str:
    """hash: the fields batch and newer_bytes of INTAKE, of a named inbox. The lease is that of INTAKE."""
    return f"{INTAKE}:{name}" if name else INTAKE


def kinds_of_inbox(name: str = "") -> dict[str, str]:
    """Return the keys of an inbox, each with its type."""
    return {**dict.fromkeys((inbox(name), taken(name), newer(name)), "list"), intake(name): "hash"}


RECORD_SUFFIX = ":fetches"
"""The suffix of the key of a batch's record."""

RECORD_SEGMENT_PLACES = 1 << 20
"""Number of fetches in one string of a record: 6 MiB, of the 512 MiB that Redis allows."""


def record(batch_id: str, place: int = 0) -> str:
    """string: a bitfield with a u48 for each place in the batch, 0 once the fetch there has ended.

    The value is (fingerprint of the fetch + deadline in Unix ms) mod 2^48, or 1 if that is 0
    (jobs/contract/fetch.py, record_of). Each string has RECORD_SEGMENT_PLACES places. Removed when the batch
    ends; expires UNFINISHED_TTL_MS after the last submit.
    """
    segment = place // RECORD_SEGMENT_PLACES
    return batch(batch_id) + RECORD_SUFFIX + (f":{segment}" if segment else "")


def key(text: str) -> str:
    """string: ID of the fetch that has this `key`, followed by + once another batch refers to it.

    Expires after KEY_TTL_MS, or at the deadline of the fetch if that is later.
    """
    return f"ff:key:{text}"


def robots(origin: str) -> str:
    """string: robots.txt of an origin, as JSON. Expires after a day at most, an hour if there is none."""
    return f"ff:robots:{origin}"


MAX_LANE_NAME_BYTES = 300
"""The maximum length of a lane's name, in bytes. A host has at most 253."""


def lane(name: str) -> str:
    """hash: the state of a lane. Times are in Unix ms.

    state: idle, scheduled or held. generation, due_ms: of a scheduled lane. owner, token: of a held lane.
    gate: saved state of the gate. shut_until_ms, why: when and why the gate opens later.
    open: number of fetches without a result. earliest_ms: lower bound of the deadlines of waiting fetches.
    last_owner: worker whose lease lapsed, until the next owner has its claims.
    reset: operator who reset the lane, until a worker applies it.
    estimated: `open` was counted from the queues, and BACKLOG may not include all of it.
    needs: needs of a fetch for which the lane was handed over (worker/fetch/cases/handover.py).
    left: token under which the last settlements released the lane.
    Expires after GATE_TTL_MS while the lane is idle.
    """
    return f"ff:lane:{name}"


def claimed(name: str) -> str:
    """hash: fetch ID → serialized entry, of the fetches that the owner of the lane has claimed."""
    return f"ff:claimed:{name}"


def later(name: str) -> str:
    """zset: serialized entry → Unix ms of its next attempt."""
    return f"ff:later:{name}"


def cancelled(name: str) -> str:
    """set: cancelled batches whose fetches the owner must end. Expires after UNFINISHED_TTL_MS."""
    return f"ff:cancelled:{name}"


def waiting(name: str) -> tuple[str, str, str, str]:
    """Lists of serialized entries, in the order in which they are claimed: returned, high, normal, low."""
    return (
        f"ff:waiting:{name}:returned",
        f"ff:waiting:{name}:high",
        f"ff:waiting:{name}:normal",
        f"ff:waiting:{name}:low",
    )


def waiting_at(name: str, priority: str) -> str:
    """Return the key of the list of a priority, or of "returned": claims that a worker returned."""
    return f"ff:waiting:{name}:{priority}"


LANE_QUEUES = ("returned", "high", "normal", "low", "later")
"""The queues of a lane: four lists, in the order in which they are claimed, and the retries."""

LANE_KEYS = "ff:[clw]*"
"""Pattern for SCAN that matches every key of a lane, and few others."""


def lane_of(key: str) -> str:
    """Return the lane of a key that holds its state or fetches; "" for any other key."""
    for prefix in (lane(""), claimed(""), later("")):
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    prefix = waiting_at("", "").removesuffix(":")
    return key.removeprefix(prefix).rpartition(":")[0] if key.startswith(prefix) else ""


def lane_queue(name: str, queue: str) -> str:
    """Return the key of one of LANE_QUEUES."""
    return later(name) if queue == "later" else waiting_at(name, queue)


def worker(instance: str) -> str:
    """string: report of a worker instance, as JSON. Expires after WORKER_TTL_MS."""
    return f"ff:worker:{instance}"


DEATHS = "ff:deaths"
"""zset: worker instance → Unix ms when a lane was reclaimed from it because its lease had lapsed.

Deaths of several workers have another cause than one fetch (worker/fetch/rules/crashes.py). Expires
DEATHS_WINDOW_MS after the last death."""

DEATHS_WINDOW_MS = 60_000


def policy_file(digest: str) -> str:
    """string: policy file with that digest, as JSON without private values (worker/policy/published.py).

    Expires after POLICY_FILE_TTL_MS unless the heartbeat of a worker that uses it renews it.
    """
    return f"ff:policy-file:{digest}"


POLICY_FILE_TTL_MS = 60_000

WORKERS = "ff:workers"
"""zset: worker instance → Unix ms of its last heartbeat. Heartbeats remove those beyond WORKER_TTL_MS."""

LACKING = "ff:lacking"
"""set: instances of live workers that cannot store bodies. They start no fetch and are not in WORKERS, so the
others share the lanes. Expires WORKER_TTL_MS after the last heartbeat of such a worker."""

DRAINS = "ff:drains"
"""hash: worker instance → Unix ms when an operator drained it, 0 once it may acquire lanes again.

The worker then removes its field, and when it exits. The field of a killed worker stays until the next
drain."""

HANDED = "ff:handed"
"""hash: lane → needs of a fetch that its last owner does not meet.

A worker that meets them acquires the lane, which removes the field. Expires HANDED_TTL_MS after the last
field was added."""

HANDED_TTL_MS = 60_000

WATCHED = "ff:watched"
"""string: exists while a console or terminal shows log lines; the workers then publish theirs to EVENTS.

Expires WATCHED_TTL_MS after a watcher set it; each watcher sets it every WATCH_EVERY_MS."""

WATCHED_TTL_MS = 10_000
WATCH_EVERY_MS = 3_000

EVENTS = "ff:events"
"""Pub/Sub channel, not a key: log lines of the workers as JSON Lines, some in each message."""


FIXED: dict[str, str] = {
    **dict.fromkeys((SERIAL, BACKLOG, POLICY_VERSION, CANCELS, RESETS), "counter"),
    **dict.fromkeys((QUEUE, ATTENTION, BATCHES, WEBHOOKS, DEATHS, WORKERS), "zset"),
    **dict.fromkeys((INBOX, TAKEN, NEWER), "list"),
    INBOXES: "set",
    **dict.fromkeys((INTAKE, POLICY, DRAINS, HANDED), "hash"),
    LACKING: "set",
    **dict.fromkeys((ALL_RESULTS, DEAD), "stream"),
}
"""The keys that exist once in a fleet, each with its kind: a Redis type, or "counter" (a string)."""


def kinds_of_lane(name: str) -> dict[str, str]:
    """Return the keys of a lane, each with its type."""
    lists = dict.fromkeys(waiting(name), "list")
    return {lane(name): "hash", claimed(name): "hash", later(name): "zset", cancelled(name): "set", **lists}


def kinds_of_batch(batch_id: str) -> dict[str, str]:
    """Return the keys of a batch, each with its type."""
    kinds = {batch(batch_id): "hash", results(batch_id): "stream"}
    return {**kinds, batch_lanes(batch_id): "set", digests(batch_id): "list", record(batch_id): "string"}


def arq_job(job_id: str) -> str:
    """string: an arq job, as JSON. Written and expired by arq."""
    return f"arq:job:{job_id}"


def arq_in_progress(job_id: str) -> str:
    """string: exists while a worker runs the arq job. Written and expired by arq."""
    return f"arq:in-progress:{job_id}"


def arq_tries(job_id: str) -> str:
    """string: number of starts of the arq job. Written and expired by arq."""
    return f"arq:retry:{job_id}"


ARQ_ABORTS = "arq:abort"
"""zset: arq jobs to abort. Written by arq, which removes a job that ends."""


def notification_job_id(lane_name: str, generation: int) -> str:
    """Return the arq job ID of a notification."""
    return f"lane:{lane_name}:{generation}"
