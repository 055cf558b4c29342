"""A producer in a container: submit the demo, wait for the results, and check the report of the hosts."""

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
from tools.demo.checker import Expectations, HostSummary, check

REPORT_URL = f"http://demo-hosts:{hosts.REPORT_PORT}/"

console = Console()


def main(out: Path) -> int:
    """Submit the demo; return 0 if every fetch ended as expected and no limit of a host was exceeded."""
    out.mkdir(parents=True, exist_ok=True)
    listed = list(hosts.fetches({name: f"http://{name}:{port}" for name, port in hosts.PORTS.items()}))
    (out / "fetches.jsonl").write_text("".join(json.dumps(item) + "\n" for item in listed))
    console.print(
        f"{len(listed):,} fetches from {len(hosts.BEHAVIOURS)} hosts, well-behaved and misbehaving\n"
    )
    exit_code = _submit(out)
    with urlopen(REPORT_URL) as response:
        seen = msgspec.json.decode(response.read(), type=list[HostSummary])
    # The workers in containers have no policy file, so every host has the default limits.
    expected = Expectations(fetches=len(listed), hosts={name: name for name in hosts.BEHAVIOURS}, limits={})
    passed = check(console, out / "results.jsonl", seen, expected)
    return 0 if passed and exit_code in {0, 1} else 1


def _submit(out: Path) -> int:
    """Run `fetchfleet submit` on the Redis of the environment; return the exit code."""
    command = [sys.executable, "-m", "fetchfleet.worker", "submit", str(out / "fetches.jsonl")]
    command += ["--report", str(out / "results.jsonl")]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # PID 1 ignores SIGTERM by default
    sys.exit(main(Path(os.environ["FETCHFLEET_OUT"]) / "demo"))
