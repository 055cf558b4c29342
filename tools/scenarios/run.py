"""Run three workers against hostile hosts, and check the requests that each host received."""

import asyncio
import shutil
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from fetchfleet import Fetch, Fleet
from fetchfleet.jobs.client.batch import Batch
from fetchfleet.worker.local.embedded_redis import EmbeddedRedis
from fetchfleet.worker.local.process import worker_processes
from tools.origin import judge
from tools.origin.behaviours import latency, ok
from tools.origin.process import OriginProcess, Report, origins_in_child
from tools.origin.server import Behaviour, requests_inside
from tools.scenarios import hosts

WORKERS = 3
SUITE_S = hosts.ENDS_S + 5
EACH_HEALTHY = 300
BAD_FETCHES = 9 * hosts.HEALTHY * EACH_HEALTHY // len(hosts.BAD)
WIDE = 200

AT = {host.name: f"127.0.5.{number}" for number, host in enumerate(hosts.HOSTS, 1)}
HEALTHY = [f"127.0.6.{number}" for number in range(1, hosts.HEALTHY + 1)]
BAD = [
    {name: f"127.0.6.{100 + 10 * nth + place}" for place, name in enumerate(hosts.BAD)}
    for nth in range(hosts.ROUNDS)
]

console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


class Throughput(NamedTuple):
    """Figures of the healthy hosts."""

    per_s: float
    """Fetches stored a second."""
    p99_ms: float
    """The 99th percentile of the time to the first byte."""


def suite() -> Mapping[str, Behaviour]:
    """Return the behaviour of each hostile host, for `origins_in_child`."""
    return {AT[host.name]: host.behaviour for host in hosts.HOSTS}


def neighbours() -> Mapping[str, Behaviour]:
    """Return the behaviour of each healthy host, and of the bad hosts of each round."""
    bad = {at: hosts.BAD[name]() for addresses in BAD for name, at in addresses.items()}
    return {**dict.fromkeys(HEALTHY, latency(0.02, ok(b"well" * 500))), **bad}


def policy() -> str:
    """Return a policy file with short waits."""
    default = [
        "[default]",
        f"concurrency = {hosts.CONCURRENCY}",
        "retry_base_s = 0.1",
        "retry_cap_s = 1",
        f"throttle_cap_s = {hosts.CAP_S}",
        f"breaker_failures = {hosts.BREAKER_FAILURES}",
        f"breaker_reset_s = {hosts.BREAKER_RESET_S}",
        f"give_up_s = {hosts.GIVE_UP_S}",
    ]
    tables = [f'[host."{AT[host.name]}"]\n{host.policy}' for host in hosts.HOSTS if host.policy]
    lasting = [f'[host."{addresses["throttled"]}"]\nthrottle_cap_s = 3600' for addresses in BAD]
    return "\n".join([*default, *tables, *lasting, ""])


def main(out: Path) -> int:
    """Run both parts; return 0 if no fault was found."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "policy.toml").write_text(policy())
    with EmbeddedRedis(out / "redis") as redis:
        settings = {"redis_url": redis.url, "out": str(out / "bodies")}
        settings |= {"allow_net": "127.0.0.0/8", "policy": str(out / "policy.toml")}
        with worker_processes(WORKERS, settings, out):
            faults = asyncio.run(_hosts(redis.url)) + asyncio.run(_beside_bad_hosts(redis.url))
    for fault in faults:
        console.print(fault, style="red", soft_wrap=True)
    console.print(f"the workers' logs are in {out}", soft_wrap=True)
    return 1 if faults else 0


async def _hosts(redis_url: str) -> list[str]:
    """Fetch from all hostile hosts at once; return the faults in their records."""
    count = len(hosts.HOSTS)
    console.print(f"{count} hosts, {WORKERS} workers, {SUITE_S:.0f} s\n", soft_wrap=True)
    with origins_in_child(suite) as origins:
        async with Fleet(redis_url) as fleet:
            batches = [await fleet.submit(host.fetches(origins.urls[AT[host.name]])) for host in hosts.HOSTS]
            await asyncio.sleep(SUITE_S)
            reports = origins.report()
            for batch in batches:
                await _cancel(batch)
    console.print(_table(reports))
    return [f"{host.name}: {fault}" for host in hosts.HOSTS for fault in host.faults(reports[AT[host.name]])]


def _table(reports: Mapping[str, Report]) -> Table:
    table = Table(title="requests recorded by the hosts")
    for name in ("host", "limit"):
        table.add_column(name)
    for name in ("requests", "most at once", "during back-off", "refused"):
        table.add_column(name, justify="right")
    table.add_column("measured")
    table.add_column("kept")
    for host in hosts.HOSTS:
        report = reports[AT[host.name]]
        windows = judge.capped(report.windows, hosts.CAP_S)
        inside = len(requests_inside(windows, report.requests, hosts.ON_THE_WIRE_S))
        table.add_row(
            host.name,
            host.limit,
            f"{len(report.requests):,}",
            str(report.high_water),
            str(inside) if windows else "",
            f"{judge.refused(report.requests):.1%}",
            host.measured(report),
            "no" if any(host.faults(report)) else "yes",
        )
    return table


async def _beside_bad_hosts(redis_url: str) -> list[str]:
    """Measure the healthy hosts in turn alone, and beside bad hosts with nine tenths of the backlog."""
    alone, beside, faults = list[Throughput](), list[Throughput](), list[str]()
    with origins_in_child(neighbours) as origins:
        async with Fleet(redis_url) as fleet:
            await _healthy(fleet, origins, warm=True)
            for nth in range(hosts.ROUNDS):
                alone.append(await _healthy(fleet, origins))
                bad = await fleet.submit(_bad(origins, nth))
                beside.append(await _healthy(fleet, origins))
                if (await bad.counts()).done:
                    faults.append("the bad hosts finished before the healthy ones")
                await _cancel(bad)
    table = Table(title=f"{hosts.HEALTHY} healthy hosts, median of {hosts.ROUNDS}")
    table.add_column("")
    for name in ("fetches stored/s", "p99 response time, ms"):
        table.add_column(name, justify="right")
    for name, rounds in (("alone", alone), ("beside bad hosts with 90 % of the backlog", beside)):
        per_s, p99_ms = (statistics.median(figures) for figures in zip(*rounds, strict=True))
        table.add_row(name, f"{per_s:.0f}", f"{p99_ms:.0f}")
    console.print(table)
    return faults


async def _healthy(fleet: Fleet, origins: OriginProcess, *, warm: bool = False) -> Throughput:
    count = 5 if warm else EACH_HEALTHY
    began_s = time.monotonic()
    batch = await fleet.submit([f"{origins.urls[at]}/{i}" for i in range(count) for at in HEALTHY])
    waits_ms = [result.timings.ttfb_ms or 0.0 async for result in batch.results()]
    took_s = time.monotonic() - began_s
    return Throughput(len(waits_ms) / took_s, statistics.quantiles(waits_ms, n=100)[98])


def _bad(origins: OriginProcess, nth: int) -> list[Fetch]:
    return [Fetch(url=f"{origins.urls[at]}/{i}") for i in range(BAD_FETCHES) for at in BAD[nth].values()]


async def _cancel(batch: Batch) -> None:
    """Cancel a batch; return when all its fetches have ended."""
    await batch.cancel()
    async for _ in batch.results():
        pass
