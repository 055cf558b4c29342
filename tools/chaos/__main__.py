"""A fleet under faults: what is acknowledged must end once, as its host has it, and no host be pressed."""

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
from tools.chaos.history import Acknowledged, Attempted, History, Remains
from tools.chaos.nemesis import Nemesis
from tools.chaos.producers import PRODUCERS, Producer
from tools.chaos.redis_server import Server
from tools.chaos.schedule import plan
from tools.chaos.workers import WorkerPool, worker_pool
from tools.origin.process import OriginProcess, origins_in_child

DRAINS_WITHIN_S = 120.0
AGREES_WITHIN_S = 15.0
TELL_EVERY_S = 5.0
LOOK_EVERY_S = 0.2
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
    """One run; everything it makes is in the folder of its history."""

    def __init__(self, seed: int, lasts_s: float, workers: int, history: History) -> None:
        self._seed = seed
        self._lasts_s = lasts_s
        self._workers = workers
        self._history = history
        self._out = history.folder / "bodies"

    async def go(self, hosts: OriginProcess) -> None:
        """Inject the faults, heal, drain, collect."""
        policy = self._history.folder / "policy.toml"
        policy.write_text(POLICY)
        arguments = ["--out", str(self._out), "--allow-net", "127.0.0.0/8", "--policy", str(policy)]
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
            telling = asyncio.create_task(self._tell(redis, faults, producers), name="tell")
            await self._trouble(faults, producers)
            why = await self._drain(redis)
            await aio.end(telling)
            await self._collect(redis, server.url, workers, why)
            await self._stop(workers)

    async def _trouble(self, faults: Nemesis, producers: list[Producer]) -> None:
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as busy:
            for producer in producers:
                busy.create_task(producer.run(enough))
            await faults.happen(plan(self._seed, self._lasts_s, self._workers), self._lasts_s)
            enough.set()
        console.print("healed; the fleet drains")

    async def _drain(self, redis: Redis) -> list[str]:
        """What is wrong with it."""
        began_s = time.monotonic()
        if await _until(lambda: collect.drained(redis), DRAINS_WITHIN_S):
            console.print(f"drained after {time.monotonic() - began_s:.1f} s")
            return []
        return [f"the fleet had not drained {DRAINS_WITHIN_S:.0f} s after its healing"]

    async def _collect(self, redis: Redis, url: str, workers: WorkerPool, why: list[str]) -> None:
        async def only_the_living() -> bool:
            return await collect.listed(redis) <= workers.names

        await _until(only_the_living, AGREES_WITHIN_S)
        left = await collect.remains(redis, url, workers.names)
        self._history.add("remains", [Remains([*why, *left.lines], left.unix_s)])
        async with Fleet(url) as fleet:
            self._history.add("ended", await collect.ended(fleet, redis, self._batches()))
        self._history.add("found", collect.files(self._out))
        if workers.failed_starts:
            console.print(f"{workers.failed_starts} times a worker met no Redis when it started")

    def _batches(self) -> set[str]:
        """All that the producers know of."""
        known: set[str] = set()
        for line in self._history.read().producer:
            if isinstance(line, Attempted):
                known.add(line.batch)
            elif isinstance(line, Acknowledged):
                known |= {batch_of(of) for of in line.ids}
        return known - {""}

    async def _stop(self, workers: WorkerPool) -> None:
        """A last SIGTERM for all."""
        for worker in workers.workers:
            await worker.lock.acquire()
        await asyncio.gather(*(worker.end() for worker in workers.workers))

    async def _tell(self, redis: Redis, faults: Nemesis, producers: list[Producer]) -> None:
        began_s = time.monotonic()
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            backlog = "?"
            with suppress(RedisError, OSError, TimeoutError):
                backlog = str(int(await asyncio.wait_for(redis.get(keys.BACKLOG), 1) or 0))
            acknowledged = sum(producer.acknowledged for producer in producers)
            console.print(
                f"{time.monotonic() - began_s:4.0f} s: {faults.counts.total()} faults,"
                f" {acknowledged} fetches acknowledged, {backlog} without a result"
            )


async def _until(what: Callable[[], bool | Awaitable[bool]], within_s: float) -> bool:
    """Whether it came true in time; Redis may be away meanwhile."""
    give_up_s = time.monotonic() + within_s
    while time.monotonic() < give_up_s:
        with suppress(RedisError, OSError):
            is_so = what()
            if is_so if isinstance(is_so, bool) else await is_so:
                return True
        await asyncio.sleep(LOOK_EVERY_S)
    return False


def main(arguments: list[str]) -> int:
    """Run, or judge the history of an earlier run; 0 if every promise was kept, else 1."""
    parser = argparse.ArgumentParser(
        prog="scripts/chaos", description="A fleet under faults drawn by a seed."
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--minutes", type=float, default=3.0, help="of faults; healing and drain come after")
    parser.add_argument("--workers", type=int, default=4, choices=range(3, 7))
    parser.add_argument("--keep", action="store_true", help="keep the history and logs, breach or not")
    parser.add_argument("--judge", type=Path, metavar="FOLDER", help="judge the history that a run has kept")
    given = parser.parse_args(arguments)
    if given.judge:
        return _judged(History(given.judge))
    console.print(
        f"seed {given.seed}: ./scripts/chaos --seed {given.seed} --minutes {given.minutes:g}"
        f" --workers {given.workers}"
    )
    folder = Path(tempfile.mkdtemp(prefix="fetchfleet-chaos-"))
    history = History(folder)
    kept = True
    try:
        with origins_in_child(hosts_module.make_town(given.seed)) as hosts:
            asyncio.run(Run(given.seed, given.minutes * 60, given.workers, history).go(hosts))
            reports = hosts.report()
        history.add("saw", collect.saw(given.seed, reports))
        history.add("quiet", collect.quiet(reports))
        failed = _judged(history)
        kept = bool(failed) or given.keep
    finally:
        if kept:
            console.print(f"the history and logs are in {folder}", soft_wrap=True)
        else:
            shutil.rmtree(folder)
    return failed


def _judged(history: History) -> int:
    verdict = judge(history.read())
    show(console, verdict)
    console.print("every promise was kept" if not verdict.breaches else "a promise was not kept")
    return 1 if verdict.breaches else 0


def show(console: Console, verdict: Verdict) -> None:
    """The tables, then each breach in a sentence."""
    console.print(_faults(verdict))
    console.print(_fetches(verdict))
    for breach in verdict.breaches:
        console.print(breach, style="red", highlight=False, markup=False, soft_wrap=True)


def _faults(verdict: Verdict) -> Table:
    table = Table(title="what was done to the fleet, and how soon the work went on")
    table.add_column("fault")
    for name in ("times", "measured", "median s", "worst s"):
        table.add_column(name, justify="right")
    for kind, (faults, took_s) in verdict.recoveries.items():
        median, worst = (f"{of(took_s):.2f}" if took_s else "" for of in (statistics.median, max))
        table.add_row(kind.value, str(faults), str(len(took_s)), median, worst)
    return table


def _fetches(verdict: Verdict) -> Table:
    table = Table(title="what became of the fetches")
    table.add_column("")
    table.add_column("count", justify="right")
    rows = {
        "acknowledged": verdict.acknowledged,
        "perhaps (no acknowledgement came)": verdict.perhaps,
        **dict(sorted(verdict.outcomes.items())),
        "lost": verdict.lost,
        "unexpected": verdict.unexpected,
        "results twice": verdict.doubled,
        "requests": verdict.requests,
        "repeats (whole answers without a result of their own)": verdict.repeats,
    }
    for name, count in rows.items():
        table.add_row(name, f"{count:,}")
    for host, most in verdict.most_at_once.items():
        table.add_row(f"most at once at {host}", f"{most} of {hosts.CONCURRENCY}")
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
