"""No packet reaches an address that is denied, by whatever way a fetch would get there (I24)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.own_redis import own_redis

ROOT = Path(__file__).parents[3]


def no_sealed_net() -> str | None:
    """Why no network of our own can be made here, None if it can."""
    if os.geteuid() != 0:
        return "only root may make a network of its own"
    if not (shutil.which("unshare") and shutil.which("ip")):
        return "unshare or ip is not installed"
    trial = "ip link set lo up && ip route add local 0.0.0.0/0 dev lo && ip -6 route add local ::/0 dev lo"
    ended = subprocess.run(["unshare", "-n", "sh", "-c", trial], capture_output=True, text=True, check=False)
    return f"no network of its own: {ended.stderr.strip()}" if ended.returncode else None


WHY_NOT = no_sealed_net()
TRIED = {"port": 5, "rebound": 1}
LENT_FROM = 32768
CALLERS = {"8.8.8.8", "1.1.1.1", "9.9.9.9", "::1", "2606:4700:4700::1111"}


def test_i24_no_packet_reaches_a_denied_address(tmp_path: Path) -> None:
    """Nothing is sent but what public origins get at their ports, and they do get it.

    A literal, a name, a name that is at a public address as well, a redirect, another port, and a name that
    is bound anew: each is tried by a real worker where every packet is counted.
    """
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    seen = seen_in_a_sealed_net(tmp_path)
    many = len(seen["vectors"])
    sent = {to for to in seen["sent"] if not is_answer(to)}

    assert many > 100
    assert ["stored"] * 4 == [outcome for _, outcome, _ in seen["stored"]]
    assert TRIED | dict.fromkeys(("literal", "name", "mixed", "redirect"), many) == {
        way: len(results) for way, results in seen["refused"].items()
    }
    assert [] == [
        (way, *what)
        for way, results in seen["refused"].items()
        for what in results
        if what[1:] != ["failed", "egress_refused"]
    ]
    assert {"8.8.8.8 80", "2606:4700:4700::1111 80", "1.1.1.1 8080"} == sent


def seen_in_a_sealed_net(out: Path) -> dict[str, Any]:
    """What a worker did there, and what was sent; its Redis is behind a unix socket, so sends nothing."""
    with own_redis() as redis:
        trial = [sys.executable, "-m", "tests.support.sealed_net", redis.url, str(out)]
        ended = subprocess.run(
            ["unshare", "-n", *trial], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
        )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def is_answer(to: str) -> bool:
    """Whether a packet went back to who had called, or to the nameserver, at the port that it was lent."""
    address, _, port = to.partition(" ")
    return address in CALLERS and int(port) >= LENT_FROM
