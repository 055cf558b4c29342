"""Run a worker in its own network namespace and count its packets. Run this under `unshare -n`.

Every address is routed to loopback, so that a packet to any address is sent and counted. The module prints
the results of the fetches and the number of packets to each address and port, as JSON.
"""

import asyncio
import json
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from fetchfleet import Outcome, Result
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.observability import log
from fetchfleet.worker.policy.egress import Egress
from fetchfleet.worker.runtime.timings import WorkerTimings
from tests.support.nameserver import addresses, nameserver
from tests.support.waiting import wait_until
from tests.unit.policy.test_egress import REFUSED, SMOKESCREEN
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Exchange, Origin

PUBLIC, PUBLIC_6, NAMESERVER = "8.8.8.8", "2606:4700:4700::1111", "9.9.9.9"
OPENED, OPENED_PORT = "1.1.1.1", 8080
ROUTES = (
    "link set lo up",
    "route add local 0.0.0.0/0 dev lo",
    "-6 route add local ::/0 dev lo",
    f"-6 address add {PUBLIC_6}/128 dev lo nodad",
)
TCP, UDP, ETH_P_ALL, SO_RCVBUFFORCE = 6, 17, 3, 33
VECTORS = sorted({address for address, _ in (*REFUSED, *SMOKESCREEN) if Egress().refusal(address, 80)})
DIALLABLE = [address for address in VECTORS if "%" not in address]


class Packets:
    """Counts outgoing TCP and UDP packets by address and port."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self._tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        self._tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._tap.setblocking(False)  # noqa: FBT003

    @contextmanager
    def counted(self) -> Iterator["Packets"]:
        """Count the packets that are sent during the block."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._tap, self._read)
        try:
            yield self
        finally:
            loop.remove_reader(self._tap)
            self._tap.close()

    def _read(self) -> None:
        with suppress(BlockingIOError):
            while True:
                packet, (_, _, kind, *_) = self._tap.recvfrom(128)
                destination = _destination(packet)
                if kind == socket.PACKET_OUTGOING and destination:
                    self.sent[destination] += 1


def _destination(packet: bytes) -> str | None:
    """Return "ADDRESS PORT" of a TCP or UDP packet, else None."""
    if packet[0] >> 4 == 4:
        protocol, address, rest = packet[9], packet[16:20], packet[(packet[0] & 15) * 4 :]
    else:
        protocol, address, rest = packet[6], packet[24:40], packet[40:]
    if protocol not in {TCP, UDP}:
        return None
    return f"{ip_address(address)} {struct.unpack('!H', rest[2:4])[0]}"


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


async def _redirect(exchange: Exchange) -> None:
    """Redirect to the address in the path; close each connection."""
    _, _, address = exchange.request.target.partition("/to/")
    location = [("Location", f"http://{address}/")] if address else []
    await exchange.respond(302 if address else 200, [*location, ("Connection", "close")], b"ok")


def _allowed() -> list[str]:
    """Return allowed URLs: public addresses, a port opened by the policy, and a name before its rebinding."""
    opened = f"http://{OPENED}:{OPENED_PORT}/"
    return [f"http://{PUBLIC}/", f"http://{_host(PUBLIC_6)}/", opened, "http://rebound.example/"]


def _urls() -> dict[str, list[str]]:
    """Return forbidden URLs by the means with which they reach a forbidden address."""
    return {
        "literal": [f"http://{_host(address)}/" for address in DIALLABLE],
        "name": [f"http://name{number}.example/" for number in range(len(DIALLABLE))],
        "mixed": [f"http://mixed{number}.example/" for number in range(len(DIALLABLE))],
        "redirect": [f"http://{PUBLIC}/to/{_host(address)}" for address in DIALLABLE],
        "port": [f"http://{PUBLIC}:{port}/" for port in (22, 25, 6379, 8080)] + [f"http://{OPENED}/"],
        "rebound": ["http://rebound.example/"],
    }


async def _run(redis_url: str, out: Path) -> dict[str, Any]:
    await wait_until(lambda: _responds(redis_url), "Redis")
    async with (
        nameserver(NAMESERVER) as names,
        Origin.serving(PUBLIC, o.OK, 80) as public,
        Origin.serving(PUBLIC_6, o.OK, 80),
        Origin.serving(OPENED, o.OK, OPENED_PORT),
    ):
        for number, address in enumerate(DIALLABLE):
            names.replies[f"name{number}.example"] = [addresses(address)]
            names.replies[f"mixed{number}.example"] = [addresses(PUBLIC, address), addresses(address, PUBLIC)]
        names.replies["rebound.example"] = [addresses(PUBLIC)]
        public.behaviour = _redirect
        hosts = {OPENED: {"ports": [OPENED_PORT]}}
        settings: dict[str, Any] = {"nameservers": names.address, "timings": WorkerTimings(poll_delay_s=0.02)}
        worker = OneWorker(redis_url, out, allow_net="", hosts=hosts, **settings)
        with Packets().counted() as packets:
            async with worker:
                stored = await worker.results(_allowed())
                names.replies["rebound.example"] = [addresses("169.254.169.254")]
                refused = {way: await _results(worker, urls) for way, urls in _urls().items()}
            sent = dict(packets.sent)
            await _dial("10.0.0.1")
            await wait_until(lambda: packets.sent["10.0.0.1 80"], "the counter to see a denied address")
    return {
        "vectors": DIALLABLE,
        "stored": [_summary(result) for result in stored],
        "refused": {way: [_summary(result) for result in results] for way, results in refused.items()},
        "sent": sent,
    }


async def _results(worker: OneWorker, urls: list[str]) -> list[Result]:
    """Return the results of forbidden URLs.

    If the reply for one record type is late, c-ares returns the addresses of the other: all of them may be
    public. So the fetches that were stored are made again, twice at most.
    """
    results = await worker.results(urls)
    for _ in range(2):
        stored = [result.url for result in results if result.outcome is Outcome.STORED]
        if stored:
            results = [result for result in results if result.outcome is not Outcome.STORED]
            results += await worker.results(stored)
    return results


async def _responds(redis_url: str) -> bool:
    try:
        async with connect(redis_url) as redis:
            return bool(await redis.ping())
    except RedisError:
        return False


async def _dial(address: str) -> None:
    """Connect without the egress guard, to show that the counter works."""
    with suppress(OSError), socket.socket() as dialling:
        dialling.setblocking(False)  # noqa: FBT003
        dialling.connect((address, 80))


def _summary(result: Result) -> list[Any]:
    return [result.url, result.outcome.value, result.reason and result.reason.value]


if __name__ == "__main__":
    for arguments in ROUTES:
        subprocess.run(["ip", *arguments.split()], check=True)
    log.configure()
    print(json.dumps(asyncio.run(_run(sys.argv[1], Path(sys.argv[2])))))  # noqa: T201
