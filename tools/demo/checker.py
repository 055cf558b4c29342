"""Check a demo run by its results and by the requests that its hosts received."""

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
"""Requests may arrive this long after a 429: they were in transit when it was sent."""


class HostSummary(msgspec.Struct, frozen=True):
    """The requests at one host."""

    name: str
    requests: int
    connections: int
    """Connections opened."""
    high_water: int
    """Peak of concurrent requests."""
    during_backoff: int | None
    """Requests inside a back-off window; None if the host never asked the client to back off."""


def summarize(name: str, report: Report) -> HostSummary:
    """Summarize the record of a host."""
    inside = len(requests_inside(report.windows, report.requests, ON_THE_WIRE_S))
    return HostSummary(
        name=name,
        requests=len(report.requests),
        connections=report.connections_opened,
        high_water=report.high_water,
        during_backoff=inside if report.windows else None,
    )


class Expectations(msgspec.Struct, frozen=True):
    """The expectations that the results and the hosts' records must meet."""

    fetches: int
    """The number of fetches."""
    hosts: Mapping[str, str]
    """The host in URLs, by name."""
    limits: Mapping[str, int]
    """Limits of concurrent requests by name, where they differ from the default."""

    def limit(self, name: str) -> int:
        """Return the limit of concurrent requests to the host."""
        return self.limits.get(name, hosts_module.DEFAULT_CONCURRENCY)


def check(console: Console, results: Path, seen: Sequence[HostSummary], expected: Expectations) -> bool:
    """Print the table of the hosts and every unmet expectation; return True if all are met."""
    console.print(_host_table(seen, expected))
    faults = [*_unexpected(results, expected.fetches), *_over_limits(seen, expected)]
    for fault in faults:
        console.print(fault, style="red", highlight=False, soft_wrap=True)
    return not faults


def _unexpected(path: Path, count: int) -> Iterator[str]:
    """Yield a line for each unexpected result."""
    lines = path.read_text().splitlines() if path.exists() else []
    results: list[dict[str, Any]] = [json.loads(line) for line in lines]
    ids = {result["id"] for result in results}
    if (len(ids), len(results)) != (count, count):
        yield f"{len(results)} results of {len(ids)} fetches, expected {count} of {count}"
    for result in results:
        if result["outcome"] != result["meta"]["expect"]:
            yield f"{result['url']}: {result['outcome']} ({result['reason']})"


def _over_limits(seen: Sequence[HostSummary], expected: Expectations) -> Iterator[str]:
    """Yield a line for each limit that was exceeded at a host."""
    for host in seen:
        limit, name = expected.limit(host.name), expected.hosts[host.name]
        if host.high_water > limit:
            yield f"{name}: {host.high_water} requests at once; the limit is {limit}"
        if host.during_backoff:
            yield f"{name}: {host.during_backoff} requests while it asked the client to back off"


def _host_table(seen: Sequence[HostSummary], expected: Expectations) -> Table:
    table = Table(title="requests recorded by the hosts")
    table.add_column("host")
    table.add_column("behaviour")
    table.add_column("requests", justify="right")
    table.add_column("connections", justify="right")
    table.add_column("most at once", justify="right")
    table.add_column("during back-off", justify="right")
    for host in seen:
        table.add_row(
            expected.hosts[host.name],
            hosts_module.BEHAVIOURS[host.name],
            f"{host.requests:,}",
            f"{host.connections:,}",
            f"{host.high_water} of {expected.limit(host.name)}",
            "" if host.during_backoff is None else str(host.during_backoff),
        )
    return table
