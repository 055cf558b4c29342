"""Run a fleet under faults, then check that every acknowledged fetch ended once and that limits were kept."""

import argparse
import asyncio
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.ids import batch_of
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.util import aio
from tools.chaos import collect, hosts
from tools.chaos import hosts as hosts_module
from tools.chaos.checker import Verdict, judge
from tools.chaos.history import Acknowledged, Attempted, History, Leftovers
from tools.chaos.nemesis import Nemesis
from tools.chaos.producers import PRODUCERS, Producer
from tools.chaos.redis_server import Server
from tools.chaos.schedule import Fault, plan, plan_kills
from tools.chaos.workers import WorkerPool, worker_pool
from tools.origin.process import OriginProcess, origins_in_child

DRAINS_WITHIN_S = 120.0
AGREES_WITHIN_S = 15.0
PROGRESS_EVERY_S = 5.0
POLL_S = 0.2
WIDE = 160

POLICY = f"""\
[default]
concurrency = {hosts_module.CONCURRENCY}
attempts = 30
retry_base_s = 0.05
retry_cap_s = 0.5
breaker_failures = 10
breaker_reset_s = 0.5
breaker_cap_s = 1
"""

console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


class Run:
    """One run. All its files are in the folder of its history."""

    def __init__(
        self,
        seed: int,
        lasts_s: float,
        workers: int,
        faults: list[Fault],
        killers: int,
        store: str | None,
        history: History,
    ) -> None:
        self._seed = seed
        self._lasts_s = lasts_s
        self._workers = workers
        self._faults = faults
        self._killers = killers
        self._store = store
        self._history = history
        self._out = history.folder / "bodies"

    async def go(self, hosts: OriginProcess) -> None:
        """Inject the faults, heal them, drain the fleet, and collect the history."""
        policy = self._history.folder / "policy.toml"
        policy.write_text(POLICY)
        bodies = ["--out", self._store, "--spool"] if self._store else ["--out"]
        arguments = [*bodies, str(self._out), "--allow-net", "127.0.0.0/8", "--policy", str(policy)]
        async with (
            Server.running(self._history.folder) as server,
            worker_pool(self._workers, server.socket, arguments, self._history) as workers,
            connect(server.url) as redis,
        ):
            await _until(lambda: workers.ready, AGREES_WITHIN_S)
            faults = Nemesis(workers, server, self._history)
            producers = [
                Producer(n, self._seed, server.url, hosts.urls, self._history) for n in range(PRODUCERS)
            ]
            reporting = asyncio.create_task(self._report_progress(redis, faults, producers), name="progress")
            await self._inject(faults, producers)
            breaches = await self._drain(redis)
            await aio.end(reporting)
            await self._collect(redis, server.url, workers, breaches)
            await self._stop(workers)

    async def _inject(self, faults: Nemesis, producers: list[Producer]) -> None:
        healed = asyncio.Event()
        async with asyncio.TaskGroup() as producing:
            for producer in producers:
                producing.create_task(producer.run(healed))
            producing.create_task(producers[0].submit_killers(self._killers, self._lasts_s))
            await faults.inject(self._faults, self._lasts_s)
            healed.set()
        console.print("faults healed; waiting for the fleet to drain")

    async def _drain(self, redis: Redis) -> list[str]:
        """Wait until the fleet has drained; return a breach if it does not drain in time."""
        began_s = time.monotonic()
        if await _until(lambda: collect.drained(redis), DRAINS_WITHIN_S):
            console.print(f"drained after {time.monotonic() - began_s:.1f} s")
            return []
        return [f"the fleet did not drain within {DRAINS_WITHIN_S:.0f} s after the faults healed"]

    async def _collect(self, redis: Redis, url: str, workers: WorkerPool, breaches: list[str]) -> None:
        async def only_live_workers_listed() -> bool:
            return await collect.listed(redis) <= workers.names

        await _until(only_live_workers_listed, AGREES_WITHIN_S)
        left = await collect.remains(redis, url, workers.names)
        self._history.add("remains", [Leftovers([*breaches, *left.lines], left.unix_s)])
        async with Fleet(url) as fleet:
            self._history.add("ended", await collect.ended(fleet, self._batches()))
        found = collect.objects(self._store) if self._store else collect.files(self._out)
        self._history.add("found", found)
        if workers.failed_starts:
            console.print(f"{workers.failed_starts} worker starts failed because Redis was unavailable")

    def _batches(self) -> set[str]:
        """Return the IDs of the batches that the producers know."""
        known: set[str] = set()
        for line in self._history.read().producer:
            if isinstance(line, Attempted):
                known.add(line.batch)
            elif isinstance(line, Acknowledged):
                known |= {batch_of(fetch_id) for fetch_id in line.ids}
        return known - {""}

    async def _stop(self, workers: WorkerPool) -> None:
        """Stop every worker with SIGTERM."""
        for worker in workers.workers:
            await worker.lock.acquire()
        await asyncio.gather(*(worker.end() for worker in workers.workers))

    async def _report_progress(self, redis: Redis, faults: Nemesis, producers: list[Producer]) -> None:
        began_s = time.monotonic()
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            backlog = "?"
            with suppress(RedisError, OSError, TimeoutError):
                backlog = str(int(await asyncio.wait_for(redis.get(keys.BACKLOG), 1) or 0))
            acknowledged = sum(producer.acknowledged for producer in producers)
            console.print(
                f"{time.monotonic() - began_s:4.0f} s: {faults.counts.total()} faults,"
                f" {acknowledged} fetches acknowledged, {backlog} without a result"
            )


async def _until(condition: Callable[[], bool | Awaitable[bool]], within_s: float) -> bool:
    """Return whether the condition became true in time; errors of Redis count as false."""
    give_up_s = time.monotonic() + within_s
    while time.monotonic() < give_up_s:
        with suppress(RedisError, OSError):
            value = condition()
            if value if isinstance(value, bool) else await value:
                return True
        await asyncio.sleep(POLL_S)
    return False


def main(arguments: list[str]) -> int:
    """Run, or check the history of an earlier run; return 0 if there is no breach, else 1."""
    parser = argparse.ArgumentParser(
        prog="scripts/chaos", description="Run a fleet under faults drawn from a seed."
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument(
        "--minutes", type=float, default=3.0, help="duration of the faults; healing and draining follow"
    )
    parser.add_argument("--workers", type=int, default=4, choices=range(3, 7))
    parser.add_argument(
        "--kill-every", type=float, metavar="S", help="only kill workers, one every S seconds on average"
    )
    parser.add_argument(
        "--killers", type=int, default=0, metavar="N", help="submit N fetches that kill their worker"
    )
    parser.add_argument(
        "--store", metavar="URL", help="store bodies in this object store, such as s3://bucket/prefix"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the history and logs even if no breach is found"
    )
    parser.add_argument(
        "--judge", type=Path, metavar="FOLDER", help="only check the history that an earlier run has kept"
    )
    options = parser.parse_args(arguments)
    if options.judge:
        return _judged(History(options.judge))
    console.print(
        f"seed {options.seed}: ./scripts/chaos --seed {options.seed} --minutes {options.minutes:g}"
        f" --workers {options.workers}"
    )
    lasts_s = options.minutes * 60
    faults = (
        plan_kills(options.seed, lasts_s, options.workers, options.kill_every)
        if options.kill_every
        else plan(options.seed, lasts_s, options.workers)
    )
    folder = Path(tempfile.mkdtemp(prefix="fetchfleet-chaos-"))
    history = History(folder)
    kept = True
    try:
        with origins_in_child(hosts_module.hosts_of_seed(options.seed)) as hosts:
            run = Run(options.seed, lasts_s, options.workers, faults, options.killers, options.store, history)
            asyncio.run(run.go(hosts))
            reports = hosts.report()
        history.add("requests", collect.requests(options.seed, reports))
        history.add("backoffs", collect.backoff_windows(reports))
        failed = _judged(history)
        kept = bool(failed) or options.keep
    finally:
        if kept:
            console.print(f"the history and logs are in {folder}", soft_wrap=True)
        else:
            shutil.rmtree(folder)
    return failed


def _judged(history: History) -> int:
    verdict = judge(history.read())
    show(console, verdict)
    console.print("breaches found" if verdict.breaches else "no breach found")
    return 1 if verdict.breaches else 0


def show(console: Console, verdict: Verdict) -> None:
    """Print the tables, then each breach."""
    console.print(_faults(verdict))
    console.print(_fetches(verdict))
    for breach in verdict.breaches:
        console.print(breach, style="red", highlight=False, markup=False, soft_wrap=True)


def _faults(verdict: Verdict) -> Table:
    table = Table(title="faults, and the time until work resumed")
    table.add_column("fault")
    for name in ("times", "measured", "median s", "worst s"):
        table.add_column(name, justify="right")
    for kind, (faults, took_s) in verdict.recoveries.items():
        median, worst = (f"{of(took_s):.2f}" if took_s else "" for of in (statistics.median, max))
        table.add_row(kind.value, str(faults), str(len(took_s)), median, worst)
    return table


def _fetches(verdict: Verdict) -> Table:
    table = Table(title="fetches")
    table.add_column("")
    table.add_column("count", justify="right")
    rows = {
        "acknowledged": verdict.acknowledged,
        "unacknowledged (may have been enqueued)": verdict.unacknowledged,
        **dict(sorted(verdict.outcomes.items())),
        "lost": verdict.lost,
        "unexpected": verdict.unexpected,
        "duplicate results": verdict.duplicated,
        "requests": verdict.requests,
        "repeats (complete responses without a result)": verdict.repeats,
    }
    for name, count in rows.items():
        table.add_row(name, f"{count:,}")
    for host, most in verdict.most_at_once.items():
        table.add_row(f"most at once at {host}", f"{most} of {hosts.CONCURRENCY}")
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
