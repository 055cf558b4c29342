"""A producer in a container: sends the fleet to the crowd, waits, and asks the hosts how it was."""

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
from tools.demo.checker import Saw, Terms, pronounce

DESK = f"http://crowd:{hosts.DESK_PORT}/"

console = Console()


def main(out: Path) -> int:
    """Send the fleet out; 0 if every fetch ended as it should and no host was hammered."""
    out.mkdir(parents=True, exist_ok=True)
    listed = list(hosts.fetches({name: f"http://{name}:{port}" for name, port in hosts.PORTS.items()}))
    (out / "fetches.jsonl").write_text("".join(json.dumps(item) + "\n" for item in listed))
    console.print(f"{len(listed):,} fetches from {len(hosts.TEMPERS)} hosts, well-behaved and not\n")
    ended = _submit(out)
    with urlopen(DESK) as answer:
        seen = msgspec.json.decode(answer.read(), type=list[Saw])
    # Workers without a policy file: every host has the default limits.
    terms = Terms(fetches=len(listed), hosts={name: name for name in hosts.TEMPERS}, limits={})
    good = pronounce(console, out / "results.jsonl", seen, terms)
    return 0 if good and ended in {0, 1} else 1


def _submit(out: Path) -> int:
    """The command that a user would give; the Redis is in the environment."""
    command = [sys.executable, "-m", "fetchfleet.worker", "submit", str(out / "fetches.jsonl")]
    command += ["--report", str(out / "results.jsonl")]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by itself the first process ignores it
    sys.exit(main(Path(os.environ["FETCHFLEET_OUT"]) / "demo"))
