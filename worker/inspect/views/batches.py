"""The batches of a fleet: a list with progress, and one batch in detail."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.batch import Counts
from fetchfleet.jobs.client.batch_list import BatchSummary, batch_page, summaries_of
from fetchfleet.jobs.contract.ids import is_batch_id
from fetchfleet.jobs.contract.result import Outcome
from fetchfleet.jobs.contract.webhooks import webhook_batch_id
from fetchfleet.jobs.redis_connection import redis_now_ms, text_of
from fetchfleet.jobs.scripts.views import NewestResults, recent_results
from fetchfleet.worker.inspect.policy_in_force import policy_in_force
from fetchfleet.worker.inspect.views.hosts import HostRow, hosts_named
from fetchfleet.worker.observability import redact
from fetchfleet.worker.redis_support.key_repair import is_key_conflict
from fetchfleet.worker.settings import NO_POLICY
from fetchfleet.worker.util.quantities import time_left_s

MAX_PAGE = 500
"""The maximum number of batches on a page."""

RATE_RESULTS = 500
"""The number of newest results whose times give the rate of a batch."""

RATE_WITHIN_S = 300
"""The maximum age of these results."""

MIN_RATE_RESULTS = 10
"""The number of results below which the rate is that since the first submit."""

READ_AT_ONCE = 500
MAX_RESULTS_READ = 20_000
"""The maximum number of results of a batch to read for the reasons of its failures, the newest first."""

MAX_LANES = 2_000
"""The maximum number of lanes of a batch to look at."""

MAX_REASON_CHARS = 40

HOSTS_SHOWN = 20
"""The maximum number of hosts of a batch to show."""


class BatchRow(msgspec.Struct, frozen=True, kw_only=True):
    """A batch with its progress. Times are by the clock of Redis."""

    id: str
    state: str
    """submitting, running, cancelling, ended or cancelled."""
    created_ms: int
    """The time of the first submit, Unix ms."""
    cancel_ms: int | None
    """The time of its cancellation, Unix ms; None if it was not cancelled."""
    counts: Counts
    done: int
    """The number of fetches that have a result."""
    left: int
    """The number of fetches without a result."""
    retried_as: list[str]
    """IDs of the batches in which its failed fetches were submitted again."""
    rate_per_s: float | None
    """The recent rate of results; None if the batch does not run, or has no result yet."""
    eta_s: float | None
    """The estimated time until its last result, on a list without the waits for hosts; None if unknown."""


class BatchPage(msgspec.Struct, frozen=True, kw_only=True):
    """Batches, newest first."""

    batches: list[BatchRow]
    in_all: int
    """The number of batches in Redis, also empty ones."""
    next_offset: int | None
    """The offset of the next page; None at the end."""
    now_ms: int
    """Unix ms by the clock of Redis."""


class BatchDetail(msgspec.Struct, frozen=True, kw_only=True):
    """A batch, the reasons of its failures, and the hosts for which it waits."""

    batch: BatchRow
    notify: str | None
    """The URL of its webhook, without secrets; None without a webhook."""
    webhook: str | None
    """The ID of the batch of its webhook, once that is enqueued."""
    failures: dict[str, int]
    """The number of failures by reason, the most frequent first."""
    notes: dict[str, str]
    """The note of the newest failure of each reason, of those that have one."""
    failures_exact: bool
    """False if not every failure was read: the batch has more results, or readers removed some."""
    results_read: int
    """The number of results that were read for `failures`."""
    lanes: int
    """The number of hosts that have had fetches of the batch."""
    hosts: list[HostRow]
    """Those of them that have work, of any batch; HOSTS_SHOWN at most, those with most waiting first."""
    now_ms: int
    """Unix ms by the clock of Redis."""


def state_of_batch(batch: BatchSummary) -> str:
    """Return submitting, running, cancelling, ended or cancelled. Pure."""
    if batch.cancel_ms is not None:
        return "cancelled" if batch.counts.ended else "cancelling"
    if batch.counts.ended:
        return "ended"
    return "running" if batch.counts.sealed else "submitting"


def rate_of(batch: BatchSummary, newest: NewestResults) -> float | None:
    """Return the recent rate of results of a batch, in results each second; None without a result. Pure.

    If the stream has too few results, it is the rate since the first submit. Readers may have removed them.
    """
    done, now_ms = batch.counts.done, newest.now_ms
    if not done:
        return None
    if newest.number >= MIN_RATE_RESULTS:
        return newest.number / (max(1, now_ms - newest.oldest_ms) / 1000)
    is_trimmed = newest.length < min(done, MIN_RATE_RESULTS)
    is_young = now_ms - batch.created_ms < RATE_WITHIN_S * 1000
    if is_trimmed or is_young:
        return done / (max(1, now_ms - batch.created_ms) / 1000)
    return newest.number / RATE_WITHIN_S


def batch_row(
    batch: BatchSummary,
    newest: NewestResults | None,
    bound_per_s: float | None = None,
    waits_s: Sequence[float] = (),
) -> BatchRow:
    """Return the row of a batch. Pure.

    newest: None unless it has open fetches. bound_per_s: the rate that the policy allows; None without a
    limit. waits_s: the times until its closed hosts open.
    """
    counts = batch.counts
    left = max(0, counts.total - counts.done)
    rate_per_s = rate_of(batch, newest) if newest is not None else None
    known_left = counts.sealed and newest is not None
    eta_s = time_left_s(left, [rate_per_s, bound_per_s], waits_s) if known_left else None
    return BatchRow(
        id=batch.id,
        state=state_of_batch(batch),
        created_ms=batch.created_ms,
        cancel_ms=batch.cancel_ms,
        counts=counts,
        done=counts.done,
        left=left,
        retried_as=batch.retried_as,
        rate_per_s=round(rate_per_s, 3) if rate_per_s is not None else None,
        eta_s=round(eta_s, 1) if eta_s is not None else None,
    )


async def batches(redis: Redis, *, offset: int = 0, limit: int = 50) -> BatchPage:
    """Read a page of batches, newest first. limit: MAX_PAGE at most."""
    page = await batch_page(redis, offset, min(limit, MAX_PAGE))
    newest = await _newest_results(redis, page.batches)
    return BatchPage(
        batches=[batch_row(batch, newest.get(batch.id)) for batch in page.batches],
        in_all=await redis.zcard(keys.BATCHES),
        next_offset=page.next_place,
        now_ms=await redis_now_ms(redis),
    )


async def _newest_results(redis: Redis, summaries: list[BatchSummary]) -> Mapping[str, NewestResults]:
    """Return the newest results of the batches with open fetches, by batch ID."""
    ids = [batch.id for batch in summaries if not batch.counts.ended]
    found = await recent_results(redis, ids, count=RATE_RESULTS, within_ms=RATE_WITHIN_S * 1000)
    return dict(zip(ids, found, strict=True))


async def batch_detail(redis: Redis, batch_id: str) -> BatchDetail | None:
    """Read a batch; None if Redis does not have it."""
    found = await summaries_of(redis, [batch_id]) if is_batch_id(batch_id) else []
    if not found:
        return None
    summary = found[0]
    newest = (await _newest_results(redis, found)).get(batch_id)
    lanes, names = await _lanes_of(redis, batch_id)
    is_open = newest is not None
    working = await hosts_named(redis, names) if is_open else []
    bound_per_s = await _bound_per_s(redis, working) if is_open and len(names) == lanes else None
    reasons = await _failures(redis, batch_id, summary.counts.failed)
    now_ms = await redis_now_ms(redis)
    waits_s = [(of.until_ms - now_ms) / 1000 for of in working if of.waiting and of.until_ms is not None]
    notify = await redis.hget(keys.batch(batch_id), "notify")  # type: ignore[misc]
    webhook = webhook_batch_id(batch_id)
    return BatchDetail(
        batch=batch_row(summary, newest, bound_per_s, waits_s),
        notify=redact.url(text_of(notify)) if notify else None,
        webhook=webhook if notify and await redis.exists(keys.batch(webhook)) else None,
        failures=dict(reasons.counts.most_common()),
        notes=reasons.notes,
        failures_exact=reasons.counts.total() == summary.counts.failed,
        results_read=reasons.read,
        lanes=lanes,
        hosts=working[:HOSTS_SHOWN],
        now_ms=now_ms,
    )


async def _lanes_of(redis: Redis, batch_id: str) -> tuple[int, list[str]]:
    """Return the number of lanes of a batch, and their names unless they are more than MAX_LANES."""
    key = keys.batch_lanes(batch_id)
    try:
        lanes = await redis.scard(key)  # type: ignore[misc]
        members = await redis.smembers(key) if lanes <= MAX_LANES else set[bytes]()  # type: ignore[misc]
    except ResponseError as error:
        if not is_key_conflict(error):
            raise
        return 0, []
    return lanes, [text_of(name) for name in members if len(name) <= keys.MAX_LANE_NAME_BYTES]


async def _bound_per_s(redis: Redis, hosts: list[HostRow]) -> float | None:
    """Return the rate at which the policy lets the hosts be fetched; None without a limit."""
    policy = (await policy_in_force(redis, NO_POLICY)).policy
    bound_per_s = 0.0
    for host in hosts:
        limits = policy.for_lane(host.host)
        bound_per_s += 0.0 if limits.paused else limits.rate_per_s or math.inf
    return bound_per_s if hosts and bound_per_s < math.inf else None


class _Failures(NamedTuple):
    """Failures of a batch."""

    counts: Counter[str]
    """The failures, by reason."""
    notes: dict[str, str]
    """The note of the newest one of each reason, if it has one."""
    read: int
    """The number of results that were read."""


class _ResultOutline(msgspec.Struct):
    """The fields of a result that tell how it ended."""

    outcome: str = ""
    reason: str | None = None
    note: str | None = None


_outline = msgspec.json.Decoder(_ResultOutline).decode


async def _failures(redis: Redis, batch_id: str, failed: int) -> _Failures:
    """Read the results of a batch, the newest first, until all its failures are found."""
    counts: Counter[str] = Counter()
    notes: dict[str, str] = {}
    read, end = 0, "+"
    while counts.total() < failed and read < MAX_RESULTS_READ:
        try:
            rows = await redis.xrevrange(keys.results(batch_id), end, "-", READ_AT_ONCE)
        except ResponseError as error:
            if not is_key_conflict(error):
                raise
            break
        for _, fields in rows:
            with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                result = _outline(fields.get(b"r", b""))
                if result.outcome == Outcome.FAILED:
                    reason = (result.reason or "")[:MAX_REASON_CHARS]
                    counts[reason] += 1
                    if result.note and reason not in notes:
                        notes[reason] = redact.text(result.note)
        read += len(rows)
        if len(rows) < READ_AT_ONCE:
            break
        end = f"({rows[-1][0].decode()}"
    return _Failures(counts, notes, read)
