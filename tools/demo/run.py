"""Run a list against twenty hosts with two workers, and print the requests at each host."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from tools.demo import hosts
from tools.demo.checker import Expectations, check, summarize
from tools.origin.process import origins_in_child
from tools.origin.server import Behaviour

WORKERS = 2
ADDRESSES = hosts.LOOPBACK

console = Console()


def main(out: Path) -> int:
    """Run the demo; return 0 if every fetch ended as expected and no limit of a host was exceeded."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with origins_in_child(hosts_by_address) as origins:
        down = f"http://{ADDRESSES[hosts.DOWN]}:{hosts.CLOSED_PORT}"
        listed = list(hosts.fetches({name: origins.urls.get(at, down) for name, at in ADDRESSES.items()}))
        (out / "fetches.jsonl").write_text("".join(json.dumps(item) + "\n" for item in listed))
        (out / "policy.toml").write_text(hosts.policy(ADDRESSES))
        described = f"{len(hosts.BEHAVIOURS)} hosts, well-behaved and misbehaving"
        console.print(f"{len(listed):,} fetches from {described}, {WORKERS} workers\n")
        exit_code = _run(out)
        reports = origins.report()
    seen = [summarize(name, reports[at]) for name, at in ADDRESSES.items() if at in reports]
    expected = Expectations(fetches=len(listed), hosts=ADDRESSES, limits=hosts.CONCURRENCY)
    passed = check(console, out / "results.jsonl", seen, expected)
    console.print(f"bodies, results and logs are in {out}", highlight=False, soft_wrap=True)
    return 0 if passed and exit_code in {0, 1} else 1


def hosts_by_address() -> Mapping[str, Behaviour]:
    """Return the behaviour of each host by address, for `origins_in_child`."""
    return {ADDRESSES[name]: behaviour for name, behaviour in hosts.behaviours().items()}


def _run(out: Path) -> int:
    """Run `fetchfleet run`; return the exit code."""
    command = [sys.executable, "-m", "fetchfleet.worker", "run", str(out / "fetches.jsonl")]
    command += ["--workers", str(WORKERS), "--out", str(out / "bodies")]
    command += ["--policy", str(out / "policy.toml"), "--report", str(out / "results.jsonl")]
    command += ["--allow-net", "127.0.0.0/8"]
    return subprocess.run(command, check=False).returncode
