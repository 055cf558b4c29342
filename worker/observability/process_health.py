"""The health of a worker process, as it reports it: that its loop turns, and what it is not ready for.

The worker serves a Unix socket, and `fetchfleet health` asks every worker of the machine, without Redis. The
socket is abstract (unix(7)): it has no file, ends with its process, and belongs to one network namespace,
hence to one container. Under systemd the worker also feeds the watchdog (sd_notify(3)).
"""

import asyncio
import hashlib
import os
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import cast

import msgspec

from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import mono_s

ANSWER_WITHIN_S = 3.0
"""A worker that does not answer in this time has a loop that does not turn."""

PREFIX = "fetchfleet-worker/"
_LISTENS = "00010000"  # __SO_ACCEPTCON among the flags of /proc/net/unix
_PEER = struct.Struct("3i")  # struct ucred


class HealthReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a worker. not_ready: why it would take no work at this moment, empty if it would."""

    worker: str
    not_ready: list[str]


class AskedWorker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that was asked, with its answer; None if it did not answer in time."""

    pid: int
    reply: HealthReply | None


class ProcessHealth:
    """The side of the worker. One for a process; `not_ready` is replaced once there is more to report."""

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id
        self.not_ready: Callable[[], Iterable[str]] = lambda: ["is starting"]

    @asynccontextmanager
    async def serve(self, environment: Mapping[str, str]) -> AsyncIterator[None]:
        """Answer on the socket within the block, and feed systemd's watchdog if the environment names one."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(f"\0{_name_of(self._worker_id)}{secrets.token_hex(8)}")
            server = await asyncio.get_running_loop().create_unix_server(
                lambda: _Answer(self._reply), sock=listener
            )
        except BaseException:
            listener.close()
            raise
        feeding = asyncio.create_task(_feed_watchdog(environment), name="watchdog")
        try:
            yield
        finally:
            await aio.end(feeding)
            server.close()

    def _reply(self) -> bytes:
        return msgspec.json.encode(HealthReply(worker=self._worker_id, not_ready=list(self.not_ready())))


class _Answer(asyncio.Protocol):
    """Writes the answer to each connection, and closes it."""

    def __init__(self, reply: Callable[[], bytes]) -> None:
        self._reply = reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        connection = cast("asyncio.WriteTransport", transport)  # uvloop's is no subclass
        connection.write(self._reply())
        connection.close()


async def _feed_watchdog(environment: Mapping[str, str]) -> None:
    """Tell systemd twice in each WatchdogSec that the loop turns, until cancelled."""
    address, interval_us = environment.get("NOTIFY_SOCKET"), environment.get("WATCHDOG_USEC", "")
    if (
        not address
        or not interval_us.isdigit()
        or environment.get("WATCHDOG_PID", pid := str(os.getpid())) != pid
    ):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(0)
        while True:
            with suppress(OSError):
                systemd.sendto(b"WATCHDOG=1", address.replace("@", "\0", 1))
            await asyncio.sleep(int(interval_us) / 2_000_000)


def ask_workers(worker_id: str | None, within_s: float = ANSWER_WITHIN_S) -> list[AskedWorker]:
    """Ask the workers of this machine (or container) that run as this user; root asks all of them.

    worker_id: ask only those of that name; None: all. Returns after within_s at most.
    """
    ends_s = mono_s() + within_s
    asked = [_ask(name, ends_s) for name in _listening(PREFIX if worker_id is None else _name_of(worker_id))]
    return [worker for worker in asked if worker is not None]


def _ask(name: str, ends_s: float) -> AskedWorker | None:
    """Ask one worker; None if it has ended, or is another user's or another container's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(max(0.01, ends_s - mono_s()))
        try:
            connection.connect(f"\0{name}")
        except ConnectionRefusedError:
            return None
        except OSError:  # a backlog full of earlier questions
            return AskedWorker(pid=0, reply=None)
        # The kernel knows who listens, also if that process is frozen. It is 0 in another PID namespace.
        pid, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if not pid or os.geteuid() not in {0, uid}:
            return None
        answer = b""
        try:
            while piece := connection.recv(4096):
                answer += piece
            return AskedWorker(pid=pid, reply=msgspec.json.decode(answer, type=HealthReply))
        except (OSError, msgspec.DecodeError):
            return AskedWorker(pid=pid, reply=None)


def _listening(prefix: str) -> Iterator[str]:
    """Yield the abstract sockets of this network namespace that listen and whose names have the prefix."""
    for line in Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace").splitlines():
        _, _, _, flags, *_, path = line.split(maxsplit=7)
        if flags == _LISTENS and path.startswith(f"@{prefix}"):
            yield path[1:]


def _name_of(worker_id: str) -> str:
    """Return the name of a worker's socket up to what tells its processes apart; it has a fixed length."""
    return f"{PREFIX}{hashlib.sha256(worker_id.encode()).hexdigest()[:16]}/"
