"""Start twenty hosts and a fleet of two workers, run a list, and print what each host saw."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from tools.demo import hosts
from tools.demo.checker import Terms, pronounce, saw
from tools.origin.process import origins_in_child
from tools.origin.server import Behaviour

WORKERS = 2
ADDRESSES = hosts.LOOPBACK

console = Console()


def main(out: Path) -> int:
    """Run the demo; 0 if every fetch ended as it should and no host was hammered."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with origins_in_child(at_their_addresses) as origins:
        nobody = f"http://{ADDRESSES[hosts.DOWN]}:{hosts.NOBODYS_PORT}"
        listed = list(hosts.fetches({name: origins.urls.get(at, nobody) for name, at in ADDRESSES.items()}))
        (out / "fetches.jsonl").write_text("".join(json.dumps(item) + "\n" for item in listed))
        (out / "policy.toml").write_text(hosts.policy(ADDRESSES))
        who = f"{len(hosts.TEMPERS)} hosts, well-behaved and not"
        console.print(f"{len(listed):,} fetches from {who}, {WORKERS} workers\n")
        ended = _run(out)
        reports = origins.report()
    seen = [saw(name, reports[at]) for name, at in ADDRESSES.items() if at in reports]
    terms = Terms(fetches=len(listed), hosts=ADDRESSES, limits=hosts.CONCURRENCY)
    good = pronounce(console, out / "results.jsonl", seen, terms)
    console.print(f"bodies, results and logs are in {out}", highlight=False, soft_wrap=True)
    return 0 if good and ended in {0, 1} else 1


def at_their_addresses() -> Mapping[str, Behaviour]:
    """The crowd by address; for tests.support.origin_process."""
    return {ADDRESSES[name]: behaviour for name, behaviour in hosts.behaviours().items()}


def _run(out: Path) -> int:
    """The command that a user would give."""
    command = [sys.executable, "-m", "fetchfleet.worker", "run", str(out / "fetches.jsonl")]
    command += ["--workers", str(WORKERS), "--out", str(out / "bodies")]
    command += ["--policy", str(out / "policy.toml"), "--report", str(out / "results.jsonl")]
    command += ["--allow-net", "127.0.0.0/8"]
    return subprocess.run(command, check=False).returncode
