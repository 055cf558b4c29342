"""Alerts of a real Prometheus on a real fleet that breaks and heals. A minute of the rules lasts a second."""

import asyncio
import inspect
import itertools
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis.asyncio import Redis

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from tests.support.console import served
from tests.support.logql import selections
from tests.support.monitoring import LOG_ALERTS
from tests.support.named_workers import NamedWorkers, named_workers, worker_of
from tests.support.own_redis import OwnRedis, own_redis
from tests.support.prometheus import SKIP_REASON, Prometheus, free_ports, prometheus
from tests.support.waiting import wait_until
from tests.support.workers import QUICK_POLICY
from tools.origin.behaviours import by_path, held, status
from tools.origin.server import Exchange, Origin

pytestmark = [
    pytest.mark.skipif(SKIP_REASON is not None, reason=SKIP_REASON or ""),
    pytest.mark.timeout(400),
]

HOST, UNVERIFIED, DEADLY = "127.0.0.159", "127.0.0.160", "127.0.0.161"
POLICY = f'{QUICK_POLICY}\n[host."{UNVERIFIED}"]\nverify = false\n'
RESULTS_LENGTH = 20
SETTINGS = {"FETCHFLEET_LEASE_S": "2", "FETCHFLEET_RESULTS_LENGTH": str(RESULTS_LENGTH)}
NAMES = ("one", "two")


class Trial:
    """A fleet with its console and Redis, whose workers have not been started, and a Prometheus."""

    def __init__(self, own: OwnRedis, workers: NamedWorkers, watch: Prometheus, ports: list[int]) -> None:
        self.own, self.workers, self.watch = own, workers, watch
        self._addresses = {name: f"{HOST}:{port}" for name, port in zip(NAMES, ports, strict=True)}

    def start(self) -> None:
        """Start the workers that do not run."""
        for name in self._addresses.keys() - set(self.workers.alive()):
            self.workers.start(name, FETCHFLEET_METRICS=self._addresses[name])

    async def scraped(self) -> bool:
        """Return whether Prometheus has the metrics of every worker."""
        return len(await self.watch.query("fetchfleet_ready == 1")) == len(NAMES)

    async def fires_while(self, act: Callable[[], object], *alerts: str) -> None:
        """Repeat an act, twice a second, until the alerts fire at the same time."""

        async def acted() -> bool:
            if inspect.isawaitable(done := act()):
                await done
            return set(alerts) <= await self.watch.firing()

        await wait_until(acted, f"{alerts} to fire", 60, 0.5)


@pytest.fixture
async def trial(tmp_path: Path) -> AsyncIterator[Trial]:
    """A fleet without workers, whose console started after Prometheus had missed it."""
    *ports, console = free_ports(HOST, 3)
    fleet = tmp_path / "fleet"
    with ExitStack() as stack:
        own = stack.enter_context(own_redis())
        workers = stack.enter_context(named_workers(own.url, fleet, POLICY, **SETTINGS))

        scraped = [f"{HOST}:{port}" for port in ports]
        serve = f"{HOST}:{console}"
        watch = stack.enter_context(prometheus(tmp_path / "prometheus", HOST, scraped, serve))
        await watch.fires("FetchfleetConsoleDown")
        options = ("--redis", own.url, "--redis-patience", "0", "--listen", serve)
        stack.enter_context(served(tmp_path / "console.log", *options))
        await wait_until(own.responds, "Redis")
        yield Trial(own, workers, watch, ports)


async def break_redis(trial: Trial, admin: Redis) -> None:
    """Let Redis end and come back, and reject its clients for a while."""
    trial.own.kill()
    await trial.watch.fires("FetchfleetRedisDown", "FetchfleetHeartbeatLate", "FetchfleetLanesLapse")
    trial.own.start()
    await wait_until(trial.own.responds, "Redis")
    await admin.config_set("requirepass", "another")
    await admin.client_kill_filter(_type="normal", skipme=True)
    await trial.watch.fires("FetchfleetRedisRefuses")
    await admin.config_set("requirepass", "")


async def break_worker(trial: Trial) -> None:
    """Freeze a worker, then let it continue; move the out folder away, then back."""
    worker, out = trial.workers.members["one"], trial.workers.out
    worker.send(signal.SIGSTOP)
    await trial.watch.fires("FetchfleetWorkerDown")
    worker.send(signal.SIGCONT)
    signals = itertools.cycle([signal.SIGSTOP, signal.SIGCONT])
    await trial.fires_while(lambda: worker.send(next(signals)), "FetchfleetLoopLag")
    worker.send(signal.SIGCONT)
    away = out.rename(out.with_name("away"))
    out.touch()
    await trial.watch.fires("FetchfleetDiskRefuses")
    out.unlink()
    away.rename(out)


async def test_alerts_fire_when_a_fleet_breaks_and_clear_when_it_heals(trial: Trial, tmp_path: Path) -> None:
    """The log has the lines for the alerts of the log as well. At the end no alert fires."""
    may_end = asyncio.Event()

    async def kill(x: Exchange) -> None:
        trial.workers.members[worker_of(x.request)].kill()
        await asyncio.Event().wait()

    async with (
        Origin.serving(HOST, by_path({"/missing": status(404)})) as origin,
        Origin.serving(UNVERIFIED, held(may_end)) as unverified,
        Origin.serving(DEADLY, kill) as deadly,
        Fleet(trial.own.url) as fleet,
        Redis.from_url(trial.own.url) as admin,
    ):

        async def fail() -> None:
            await fleet.submit([origin.url("/missing")] * 5)

        await trial.fires_while(fail, "FetchfleetNoWorker", "FetchfleetBacklogOld", "FetchfleetBacklogGrows")
        trial.start()
        for worker in trial.workers.members.values():
            await worker.started()
        await trial.fires_while(fail, "FetchfleetFailures")
        # Scrape the counters of both workers first, so that the group's first loss is an increase.
        await wait_until(trial.scraped, "a scrape of each worker")
        await admin.xgroup_create(keys.ALL_RESULTS, "readers", "0", mkstream=True)
        await fleet.submit([origin.url("/missing")] * 2 * RESULTS_LENGTH)
        await trial.watch.fires("FetchfleetResultsLag", "FetchfleetResultsLost")
        await fleet.submit([unverified.url()])
        await trial.watch.fires("FetchfleetUnverifiedTls")
        await break_worker(trial)
        await break_redis(trial, admin)
        await fleet.submit([deadly.url()])
        await trial.fires_while(trial.start, "FetchfleetPoison")
        may_end.set()
        await trial.watch.clears()

    fired = LOG_ALERTS.keys() & await trial.watch.fired()
    lines = [line for log in (tmp_path / "fleet").glob("*.log") for line in log.read_text().splitlines()]
    for alert in fired:
        for of in selections(LOG_ALERTS[alert]["expr"]):
            assert of.number or any(map(of.selects, lines)), (alert, of)
    assert fired > {"FetchfleetPoison", "FetchfleetRedisRefuses", "FetchfleetDiskRefuses"}
