"""Start processes of fetchfleet as forks of one that has imported it, as `fetchfleet run` starts its workers.

A process that is executed imports it anew. That is half a second of CPU, and the tests start hundreds.
"""

import ctypes
import gc
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

from fetchfleet.worker.local.process import die_with_parent

ROOT = Path(__file__).parents[2]
COMMAND, WORKER = "fetchfleet.worker", "fetchfleet.worker.local.prestart"
MAINS = {COMMAND: "fetchfleet.worker.cli.app", WORKER: WORKER}
"""The modules that a process can run, each with the module of its main function."""

MAX_ORDER_BYTES = 1 << 20
STANDARD_STREAMS = 3
_PR_SET_CHILD_SUBREAPER = 36
_ADOPTING = Lock()

_servers: list[socket.socket] = []
"""The connection to the server of this process, if it runs."""


class Process(subprocess.Popen[Any]):
    """A Popen of `python -m MODULE …` that is forked while `serving`, else executed.

    It dies with this process. It has no descriptors but its standard streams.
    """

    def __init__(self, module: str, *arguments: str | Path, **how: Any) -> None:
        super().__init__([sys.executable, "-m", module, *map(str, arguments)], **how)

    def _execute_child(self, args: Any, *rest: Any) -> None:
        executed = super()._execute_child  # type: ignore[misc]
        if not _servers:
            executed(args, *rest)
            return
        how = inspect.signature(executed).bind(args, *rest).arguments
        ends = [how["p2cread"], how["c2pwrite"], how["errwrite"]]
        order = {
            "words": args[2:],
            "env": how["env"] or dict(os.environ),
            "cwd": str(how["cwd"] or Path.cwd()),
            "session": how["start_new_session"],
        }
        streams = [own if end == -1 else end for own, end in enumerate(ends)]
        with _adopting_orphans():
            socket.send_fds(_servers[0], [json.dumps(order).encode()], streams)
            self.pid = int(_servers[0].recv(MAX_ORDER_BYTES))
        self._child_created = True
        names = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        super()._close_pipe_fds(*(how[name] for name in names))  # type: ignore[misc]


@contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Make orphans below this process its children: the fork, and for so short a time no others."""
    with _ADOPTING:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        try:
            yield
        finally:
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0)


@contextmanager
def serving() -> Iterator[None]:
    """Run the server for the length of the block."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_ORDER_BYTES)
    with ours:
        with its:
            command = [sys.executable, "-m", "tests.support.fork_server", str(its.fileno())]
            child = subprocess.Popen(
                command,
                cwd=ROOT,
                pass_fds=[its.fileno()],
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - no thread is running yet
            )
        _servers.append(ours)
        try:
            yield
        finally:
            _servers.clear()
            child.kill()
            child.wait()


def _serve(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork for each order. Returns in the forks alone, with the order and the standard streams."""
    while True:
        received, streams, _, _ = socket.recv_fds(connection, MAX_ORDER_BYTES, STANDARD_STREAMS)
        if not received:
            os._exit(0)
        orphaned, pipe = os.pipe()
        told, pid_of_it = os.pipe()
        between = os.fork()
        if not between:
            os.close(pipe)
            if child := os.fork():
                os.write(pid_of_it, b"%d" % child)
                os._exit(0)
            os.read(orphaned, 1)
            return json.loads(received), streams
        os.waitpid(between, 0)
        connection.send(os.read(told, MAX_ORDER_BYTES))
        for descriptor in (*streams, orphaned, pipe, told, pid_of_it):
            os.close(descriptor)


def _become(order: dict[str, Any], streams: list[int]) -> None:
    """Make this fork what an executed process would be."""
    die_with_parent(signal.SIGKILL)
    if order["session"]:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(STANDARD_STREAMS, os.sysconf("SC_OPEN_MAX"))
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        of = getattr(sys, name)
        how = {"encoding": of.encoding, "errors": of.errors, "closefd": False}
        buffering = 1 if mode == "w" and (name == "stderr" or os.isatty(of.fileno())) else -1
        setattr(sys, name, open(of.fileno(), mode, buffering, **how))  # noqa: PTH123, SIM115 the process keeps it
    module, *arguments = order["words"]
    sys.argv = [str(ROOT / module.replace(".", "/") / "__main__.py"), *arguments]
    sys.modules["__main__"] = ModuleType("__main__")
    sys.modules["__main__"].__package__ = module


def main() -> int | None:
    """Import everything, then fork; run what a fork is for."""
    gc.disable()
    mains: dict[str, Callable[[], int | None]] = {
        module: import_module(name).main for module, name in MAINS.items()
    }
    from fetchfleet.worker.cli import batches, hosts, policy, run, status, submit, users  # noqa: F401, PLC0415

    gc.collect()
    gc.freeze()
    _become(*(order := _serve(socket.socket(fileno=int(sys.argv[1])))))
    return mains[order[0]["words"][0]]()


if __name__ == "__main__":
    sys.exit(main())
