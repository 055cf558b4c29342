"""A producer in a container: submits the demo, waits for its results, and checks the hosts' report."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import msgspec
from rich.console import Console

from tools.demo import hosts
from tools.demo.checker import HostSummary, Terms, check

REPORT_URL = f"http://demo-hosts:{hosts.REPORT_PORT}/"

console = Console()


def main(out: Path) -> int:
    """Submit the demo; return 0 if every fetch ended as expected and no host saw more than its limit."""
    out.mkdir(parents=True, exist_ok=True)
    listed = list(hosts.fetches({name: f"http://{name}:{port}" for name, port in hosts.PORTS.items()}))
    (out / "fetches.jsonl").write_text("".join(json.dumps(item) + "\n" for item in listed))
    console.print(
        f"{len(listed):,} fetches from {len(hosts.BEHAVIOURS)} hosts, well-behaved and misbehaving\n"
    )
    ended = _submit(out)
    with urlopen(REPORT_URL) as response:
        seen = msgspec.json.decode(response.read(), type=list[HostSummary])
    # The workers have no policy file, so every host has the default limits.
    terms = Terms(fetches=len(listed), hosts={name: name for name in hosts.BEHAVIOURS}, limits={})
    good = check(console, out / "results.jsonl", seen, terms)
    return 0 if good and ended in {0, 1} else 1


def _submit(out: Path) -> int:
    """Run `fetchfleet submit`; the environment names the Redis."""
    command = [sys.executable, "-m", "fetchfleet.worker", "submit", str(out / "fetches.jsonl")]
    command += ["--report", str(out / "results.jsonl")]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # PID 1 ignores SIGTERM by default
    sys.exit(main(Path(os.environ["FETCHFLEET_OUT"]) / "demo"))
