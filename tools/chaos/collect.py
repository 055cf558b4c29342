"""Collect the history of a run after the fleet has drained."""

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from fetchfleet import Fleet, Result, UnknownBatchError
from fetchfleet.jobs import keys
from fetchfleet.worker.inspect.registration import name_of
from fetchfleet.worker.sink.files.directory import STATE_FOLDER
from fetchfleet.worker.util import object_url
from tools.chaos import hosts
from tools.chaos.history import BackoffWindow, FetchEnd, Leftovers, ObservedRequest, StoredFile
from tools.origin.process import Report
from tools.origin.server import Origin, Seen
from tools.redis_leftovers import leftovers

MOST_BATCHES = 100_000


async def drained(redis: Redis) -> bool:
    """Return whether every lane is idle and the inbox is empty."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.zcard(keys.ATTENTION)
        pipe.llen(keys.INBOX)
        pipe.llen(keys.TAKEN)
        return not any(await pipe.execute())


async def ended(fleet: Fleet, known: Iterable[str]) -> list[FetchEnd]:
    """Return the results of all batches: those that the fleet lists, and those that producers know."""
    listed = {batch.id for batch in await fleet.batches(MOST_BATCHES)}
    found: list[FetchEnd] = []
    for batch in sorted(listed | set(known)):
        results = fleet.batch(batch).results(follow=False)
        try:
            found += [_ended(result, results.position) async for result in results]
        except UnknownBatchError:
            continue  # the checker reports the acknowledged fetches of this batch as lost
    return found


def _ended(result: Result, position: str) -> FetchEnd:
    return FetchEnd(
        id=result.id,
        url=result.url,
        outcome=result.outcome.value,
        reason=result.reason.value if result.reason else None,
        status=result.status,
        path=result.path,
        sha256=result.sha256,
        attempts=result.attempts,
        at_ms=int(position.partition("-")[0]),
    )


def files(out: Path) -> Iterator[StoredFile]:
    """Yield every file at a final name."""
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out)
        if path.is_file() and name.parts[0] != STATE_FOLDER:
            yield StoredFile(str(name), hashlib.sha256(path.read_bytes()).hexdigest())


def objects(url: str) -> Iterator[StoredFile]:
    """Yield every object below the prefix of a store, without fetchfleet's own."""
    import obstore  # noqa: PLC0415 most runs store files

    scheme, bucket, prefix = object_url.parse(url)
    store: Any = obstore.store.from_url(f"{scheme}://{bucket}")
    for listed in obstore.list(store, prefix or None).collect():
        name = listed["path"].removeprefix(f"{prefix}/")
        if not name.startswith(f"{STATE_FOLDER}/"):
            body = obstore.get(store, listed["path"]).bytes()
            yield StoredFile(name, hashlib.sha256(body).hexdigest())


def requests(seed: int, reports: Mapping[str, Report]) -> Iterator[ObservedRequest]:
    """Yield every request, by host, in the order of arrival."""
    for host, report in reports.items():
        counts: dict[str, int] = {}
        for seen in report.requests:
            nth = counts[seen.target] = counts.get(seen.target, -1) + 1
            yield _observed(host, seen, hosts.act_of(seed, seen.target, nth))


def _observed(host: str, seen: Seen, act: hosts.Act) -> ObservedRequest:
    return ObservedRequest(
        host=host,
        target=seen.target,
        by=Origin.header(seen, "user-agent") or "",
        arrived_s=seen.arrived_s,
        finished_s=None if seen.finished_s == float("inf") else seen.finished_s,
        act=act.value,
        status=seen.status,
        aborted=seen.aborted,
    )


def backoff_windows(reports: Mapping[str, Report]) -> Iterator[BackoffWindow]:
    """Yield the windows in which each host asked the client to back off."""
    for host, report in reports.items():
        yield from (BackoffWindow(host, from_s, until_s) for from_s, until_s in report.windows)


async def remains(redis: Redis, redis_url: str, living: set[str]) -> Leftovers:
    """Return the state that an idle fleet must not leave in Redis. living: names of the running workers."""
    lines = leftovers(redis_url)
    backlog = int(await redis.get(keys.BACKLOG) or 0)
    if backlog:
        lines.append(f"{keys.BACKLOG} is {backlog}")
    for name in (keys.ATTENTION, keys.INBOX, keys.TAKEN):
        if await redis.exists(name):
            lines.append(f"{name} is not empty")
    lines += await _results_mismatch(redis)
    for pattern in (keys.claimed("*"), keys.later("*"), *keys.waiting("*")):
        lines += [f"{name.decode()} exists" async for name in redis.scan_iter(pattern)]
    async for name in redis.scan_iter(keys.lane("*")):
        state, count = await redis.hmget(name.decode(), ["state", "open"])  # type: ignore[misc]
        if state != b"idle" or int(count or 0):
            lines.append(f"{name.decode()} is {state!r} with {count!r} open fetches")
    lines += [f"{name} is dead but listed in {keys.WORKERS}" for name in sorted(await listed(redis) - living)]
    return Leftovers(lines, time.time() - time.monotonic())


async def _results_mismatch(redis: Redis) -> list[str]:
    """Compare the stream of all results with the streams of the batches."""
    rows = await redis.xlen(keys.ALL_RESULTS)
    own = [name async for name in redis.scan_iter(keys.results("*"))]
    in_all = sum([await redis.xlen(name) for name in own])
    return [] if rows == in_all else [f"{keys.ALL_RESULTS} has {rows} results, the batches {in_all}"]


async def listed(redis: Redis) -> set[str]:
    """Return the names of the workers that are listed in ff:workers."""
    return {name_of(instance.decode()) for instance in await redis.zrange(keys.WORKERS, 0, -1)}
