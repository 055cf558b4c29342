"""Check a demo run against its results and against what its hosts saw."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from tools.demo import hosts as hosts_module
from tools.origin.process import Report
from tools.origin.server import requests_inside

ON_THE_WIRE_S = 0.5
"""Requests that were on their way when the host said 429 are nobody's fault."""


class Saw(msgspec.Struct, frozen=True):
    """What one host saw of the fleet; while_quiet is None for a host that never asked to back off."""

    name: str
    requests: int
    connections: int
    high_water: int
    while_quiet: int | None


def saw(name: str, report: Report) -> Saw:
    """The numbers of a host's record."""
    inside = len(requests_inside(report.windows, report.requests, ON_THE_WIRE_S))
    return Saw(
        name=name,
        requests=len(report.requests),
        connections=report.connections_opened,
        high_water=report.high_water,
        while_quiet=inside if report.windows else None,
    )


class Terms(msgspec.Struct, frozen=True):
    """What was agreed: how many fetches, each host as URLs spell it, limits other than the default."""

    fetches: int
    hosts: Mapping[str, str]
    limits: Mapping[str, int]

    def limit(self, name: str) -> int:
        """How many requests the host may see at once."""
        return self.limits.get(name, hosts_module.DEFAULT_CONCURRENCY)


def pronounce(console: Console, results: Path, seen: Sequence[Saw], terms: Terms) -> bool:
    """Print what the hosts saw and every fault; True when there is none."""
    console.print(_as_the_hosts_saw_it(seen, terms))
    faults = [*_unexpected(results, terms.fetches), *_impolite(seen, terms)]
    for fault in faults:
        console.print(fault, style="red", highlight=False, soft_wrap=True)
    return not faults


def _unexpected(path: Path, count: int) -> Iterator[str]:
    """What ended otherwise than it should."""
    lines = path.read_text().splitlines() if path.exists() else []
    results: list[dict[str, Any]] = [json.loads(line) for line in lines]
    ids = {result["id"] for result in results}
    if (len(ids), len(results)) != (count, count):
        yield f"{len(results)} results of {len(ids)} fetches, {count} were asked for"
    for result in results:
        if result["outcome"] != result["meta"]["expect"]:
            yield f"{result['url']}: {result['outcome']} ({result['reason']})"


def _impolite(seen: Sequence[Saw], terms: Terms) -> Iterator[str]:
    """What a host may complain of."""
    for host in seen:
        limit, name = terms.limit(host.name), terms.hosts[host.name]
        if host.high_water > limit:
            yield f"{name} had {host.high_water} requests at once, the limit is {limit}"
        if host.while_quiet:
            yield f"{name} had {host.while_quiet} requests while it had asked the fleet to back off"


def _as_the_hosts_saw_it(seen: Sequence[Saw], terms: Terms) -> Table:
    table = Table(title="as the hosts saw it")
    table.add_column("host")
    table.add_column("behaviour")
    table.add_column("requests", justify="right")
    table.add_column("connections", justify="right")
    table.add_column("most at once", justify="right")
    table.add_column("during back-off", justify="right")
    for host in seen:
        table.add_row(
            terms.hosts[host.name],
            hosts_module.TEMPERS[host.name],
            f"{host.requests:,}",
            f"{host.connections:,}",
            f"{host.high_water} of {terms.limit(host.name)}",
            "" if host.while_quiet is None else str(host.while_quiet),
        )
    return table
