"""No packet reaches a denied address by any route (I24)."""

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
    """Return the reason no network namespace can be made here; None if one can."""
    if os.geteuid() != 0:
        return "only root may make a network namespace"
    if not (shutil.which("unshare") and shutil.which("ip")):
        return "unshare or ip is not installed"
    trial = "ip link set lo up && ip route add local 0.0.0.0/0 dev lo && ip -6 route add local ::/0 dev lo"
    ended = subprocess.run(["unshare", "-n", "sh", "-c", trial], capture_output=True, text=True, check=False)
    return f"no network namespace:  {ended.stderr.strip()}" if ended.returncode else None


WHY_NOT = no_sealed_net()
TRIED = {"port": 5, "rebound": 1}
FIRST_EPHEMERAL_PORT = 32768
CALLERS = {"8.8.8.8", "1.1.1.1", "9.9.9.9", "::1", "2606:4700:4700::1111"}


def test_i24_no_packet_reaches_a_denied_address(tmp_path: Path) -> None:
    """Packets reach public origins at their allowed ports only, and these fetches succeed.

    A real worker tries each route while every packet is counted: a literal, a name, a name with a public
    address too, a redirect, another port, and a rebound name.
    """
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    seen = seen_in_a_sealed_net(tmp_path)
    many = len(seen["vectors"])
    sent = {to for to in seen["sent"] if not is_reply(to)}

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
    """Return the results of a worker in a network namespace, and its packets. Its Redis has a unix socket."""
    with own_redis() as redis:
        trial = [sys.executable, "-m", "tests.support.private_network", redis.url, str(out)]
        ended = subprocess.run(
            ["unshare", "-n", *trial], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
        )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def is_reply(to: str) -> bool:
    """Return whether a packet is a reply of an origin or the nameserver: it goes to an ephemeral port."""
    address, _, port = to.partition(" ")
    return address in CALLERS and int(port) >= FIRST_EPHEMERAL_PORT
