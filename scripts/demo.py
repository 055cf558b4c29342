"""Boots a crowd of hosts and a fleet of two workers, lets them meet, and asks the hosts how it was."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts import crowd
from tests.support.origin import requests_inside
from tests.support.origin_process import Report, origins_in_child

WORKERS = 2
ON_THE_WIRE_S = 0.5
"""Requests that were on their way when the host said 429 are nobody's fault."""

console = Console()


def main(out: Path) -> int:
    """Run the demo; 0 if every fetch ended as it should and no host was hammered."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with origins_in_child(crowd.town) as town:
        listed = list(crowd.fetches(town.urls))
        (out / "fetches.jsonl").write_text("".join(json.dumps(item) + "\n" for item in listed))
        (out / "policy.toml").write_text(crowd.POLICY)
        tempers = len(crowd.TEMPERS)
        console.print(f"{len(listed):,} fetches from {tempers} hosts of every temper, {WORKERS} workers\n")
        ended = _run(out)
        seen = town.report()
    faults = [*_unexpected(out / "results.jsonl", len(listed)), *_impolite(seen)]
    console.print(_as_the_hosts_saw_it(seen))
    console.print(f"bodies, results and logs are in {out}", highlight=False, soft_wrap=True)
    for fault in faults:
        console.print(fault, style="red", highlight=False, soft_wrap=True)
    return 1 if faults or ended not in {0, 1} else 0


def _run(out: Path) -> int:
    """The command that a user would give."""
    command = [sys.executable, "-m", "worker", "run", str(out / "fetches.jsonl")]
    command += ["--workers", str(WORKERS), "--out", str(out / "bodies")]
    command += ["--policy", str(out / "policy.toml"), "--report", str(out / "results.jsonl")]
    command += ["--allow-net", "127.0.0.0/8"]
    return subprocess.run(command, check=False).returncode  # noqa: S603 our own command


def _unexpected(results: Path, count: int) -> Iterator[str]:
    """What ended otherwise than it should."""
    lines = results.read_text().splitlines() if results.exists() else []
    if len(lines) != count:
        yield f"{len(lines)} results of {count}"
    for line in lines:
        result: dict[str, Any] = json.loads(line)
        if result["outcome"] != result["meta"]["expect"]:
            yield f"{result['url']}: {result['outcome']} ({result['reason']})"


def _impolite(seen: dict[str, Report]) -> Iterator[str]:
    """What a host may complain of."""
    for host, report in seen.items():
        limit = crowd.CONCURRENCY.get(host, crowd.DEFAULT_CONCURRENCY)
        if report.high_water > limit:
            yield f"{host} had {report.high_water} requests at once, the limit is {limit}"
        inside = requests_inside(report.windows, report.requests, ON_THE_WIRE_S)
        if inside:
            yield f"{host} had {len(inside)} requests while it had asked for quiet"


def _as_the_hosts_saw_it(seen: dict[str, Report]) -> Table:
    table = Table(title="as the hosts saw it")
    table.add_column("host")
    table.add_column("temper")
    table.add_column("requests", justify="right")
    table.add_column("connections", justify="right")
    table.add_column("most at once", justify="right")
    table.add_column("while asked for quiet", justify="right")
    for host, report in seen.items():
        limit = crowd.CONCURRENCY.get(host, crowd.DEFAULT_CONCURRENCY)
        inside = requests_inside(report.windows, report.requests, ON_THE_WIRE_S)
        table.add_row(
            host,
            crowd.TEMPERS[host],
            f"{len(report.requests):,}",
            f"{report.connections_opened:,}",
            f"{report.high_water} of {limit}",
            str(len(inside)) if report.windows else "",
        )
    return table


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/demo")))
