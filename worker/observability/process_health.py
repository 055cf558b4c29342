"""The health of a worker process: whether its event loop runs, and why it is not ready.

The worker serves a Unix socket. `fetchfleet health` connects to every worker of the machine, without Redis.
The socket is abstract (unix(7)): it has no file, ends with its process, and belongs to one network namespace
and therefore to one container. Under systemd the worker also sends keep-alives to the watchdog
(sd_notify(3)).
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
"""The time in which a worker must reply; after it, its event loop counts as blocked."""

PREFIX = "fetchfleet-worker/"
_LISTENS = "00010000"  # __SO_ACCEPTCON among the flags of /proc/net/unix
_PEER = struct.Struct("3i")  # struct ucred


class HealthReply(msgspec.Struct, frozen=True, kw_only=True):
    """The reply of a worker."""

    worker: str
    """The name of the worker."""
    not_ready: list[str]
    """The reasons the worker takes no work now; empty if it does."""


class AskedWorker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker of this machine, with its reply."""

    pid: int
    """0 if the worker did not accept the connection."""
    reply: HealthReply | None
    """None if the worker did not reply in time."""


class ProcessHealth:
    """The health endpoint of a worker process."""

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id
        self.not_ready: Callable[[], Iterable[str]] = lambda: ["is starting"]
        """Returns the reasons for HealthReply.not_ready. Replaced when the worker has started."""

    @asynccontextmanager
    async def serve(self, environment: Mapping[str, str]) -> AsyncIterator[None]:
        """Serve the socket within the block, and notify systemd's watchdog if the environment names one."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(f"\0{_name_of(self._worker_id)}{secrets.token_hex(8)}")
            server = await asyncio.get_running_loop().create_unix_server(
                lambda: _ReplyProtocol(self._reply), sock=listener
            )
        except BaseException:
            listener.close()
            raise
        watchdog = asyncio.create_task(_notify_watchdog(environment), name="watchdog")
        try:
            yield
        finally:
            await aio.end(watchdog)
            server.close()

    def _reply(self) -> bytes:
        return msgspec.json.encode(HealthReply(worker=self._worker_id, not_ready=list(self.not_ready())))


class _ReplyProtocol(asyncio.Protocol):
    """Writes the reply to each connection and closes it."""

    def __init__(self, reply: Callable[[], bytes]) -> None:
        self._reply = reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        connection = cast("asyncio.WriteTransport", transport)  # that of uvloop is not a subclass
        connection.write(self._reply())
        connection.close()


async def _notify_watchdog(environment: Mapping[str, str]) -> None:
    """Send WATCHDOG=1 to systemd twice in each WatchdogSec, until cancelled."""
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
    """Return the workers of this machine (or container) that run as this user, or all of them for root.

    worker_id: the name of the workers to ask; None for all. Returns after within_s at most.
    """
    ends_s = mono_s() + within_s
    names = _listening(PREFIX if worker_id is None else _name_of(worker_id))
    return [worker for worker in [_ask(name, ends_s) for name in names] if worker is not None]


def _ask(name: str, ends_s: float) -> AskedWorker | None:
    """Ask one worker; return None if it has ended, or belongs to another user or container."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(max(0.01, ends_s - mono_s()))
        try:
            connection.connect(f"\0{name}")
        except ConnectionRefusedError:
            return None
        except OSError:  # the accept backlog is full of earlier connections
            return AskedWorker(pid=0, reply=None)
        # The kernel knows the listening process even if it is frozen. Its PID is 0 in another PID namespace.
        pid, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if not pid or os.geteuid() not in {0, uid}:
            return None
        text = b""
        try:
            while piece := connection.recv(4096):
                text += piece
            return AskedWorker(pid=pid, reply=msgspec.json.decode(text, type=HealthReply))
        except (OSError, msgspec.DecodeError):
            return AskedWorker(pid=pid, reply=None)


def _listening(prefix: str) -> Iterator[str]:
    """Yield the names of the listening abstract sockets with the prefix, in this network namespace."""
    for line in Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace").splitlines():
        _, _, _, flags, *_, path = line.split(maxsplit=7)
        if flags == _LISTENS and path.startswith(f"@{prefix}"):
            yield path[1:]


def _name_of(worker_id: str) -> str:
    """Return the prefix of the socket names of all workers with this name. It has a fixed length."""
    return f"{PREFIX}{hashlib.sha256(worker_id.encode()).hexdigest()[:16]}/"
