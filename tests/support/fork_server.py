"""Start fetchfleet processes by forking one that has imported fetchfleet, as `fetchfleet run` does.

A process that is executed spends half a second of CPU on imports. The tests start hundreds of processes.
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
"""The modules that a process can run, each with the module that has its `main` function."""

MAX_ORDER_BYTES = 1 << 20
STANDARD_STREAMS = 3
_PR_SET_CHILD_SUBREAPER = 36
_ADOPTING = Lock()

_servers: list[socket.socket] = []
"""The connection to the server of this process, if it runs."""


class Process(subprocess.Popen[Any]):
    """A Popen of `python -m MODULE …`: forked while the server of `serving` runs, else executed.

    The process dies with this one. It inherits no descriptors but its standard streams.
    """

    def __init__(self, module: str, *arguments: str | Path, **options: Any) -> None:
        super().__init__([sys.executable, "-m", module, *map(str, arguments)], **options)

    def _execute_child(self, args: Any, *rest: Any) -> None:
        execute = super()._execute_child  # type: ignore[misc]
        if not _servers:
            execute(args, *rest)
            return
        options = inspect.signature(execute).bind(args, *rest).arguments
        pipe_ends = [options["p2cread"], options["c2pwrite"], options["errwrite"]]
        order = {
            "words": args[2:],
            "env": options["env"] or dict(os.environ),
            "cwd": str(options["cwd"] or Path.cwd()),
            "session": options["start_new_session"],
        }
        streams = [inherited if end == -1 else end for inherited, end in enumerate(pipe_ends)]
        with _adopting_orphans():
            socket.send_fds(_servers[0], [json.dumps(order).encode()], streams)
            self.pid = int(_servers[0].recv(MAX_ORDER_BYTES))
        self._child_created = True
        names = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        super()._close_pipe_fds(*(options[name] for name in names))  # type: ignore[misc]


@contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Make this process the parent of orphaned descendants, so that the fork becomes its child.

    The block is short, so no other process is orphaned meanwhile.
    """
    with _ADOPTING:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        try:
            yield
        finally:
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0)


@contextmanager
def serving() -> Iterator[None]:
    """Run the server for the length of the block."""
    parent_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_ORDER_BYTES)
    with parent_end:
        with child_end:
            command = [sys.executable, "-m", "tests.support.fork_server", str(child_end.fileno())]
            child = subprocess.Popen(
                command,
                cwd=ROOT,
                pass_fds=[child_end.fileno()],
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - no thread is running yet
            )
        _servers.append(parent_end)
        try:
            yield
        finally:
            _servers.clear()
            child.kill()
            child.wait()


def _serve(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork for each order. Return only in a fork, with its order and its standard streams."""
    while True:
        received, streams, _, _ = socket.recv_fds(connection, MAX_ORDER_BYTES, STANDARD_STREAMS)
        if not received:
            os._exit(0)
        adopted_read, adopted_write = os.pipe()
        pid_read, pid_write = os.pipe()
        intermediate = os.fork()
        if not intermediate:
            os.close(adopted_write)
            if child := os.fork():
                os.write(pid_write, b"%d" % child)
                os._exit(0)
            os.read(adopted_read, 1)  # until the server has reported this process
            return json.loads(received), streams
        os.waitpid(intermediate, 0)
        connection.send(os.read(pid_read, MAX_ORDER_BYTES))
        for descriptor in (*streams, adopted_read, adopted_write, pid_read, pid_write):
            os.close(descriptor)


def _set_up_process(order: dict[str, Any], streams: list[int]) -> None:
    """Give this fork the session, streams, environment and arguments of an executed process."""
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
        stream = getattr(sys, name)
        options = {"encoding": stream.encoding, "errors": stream.errors, "closefd": False}
        buffering = 1 if mode == "w" and (name == "stderr" or os.isatty(stream.fileno())) else -1
        setattr(sys, name, open(stream.fileno(), mode, buffering, **options))  # noqa: PTH123, SIM115 stays open
    module, *arguments = order["words"]
    sys.argv = [str(ROOT / module.replace(".", "/") / "__main__.py"), *arguments]
    sys.modules["__main__"] = ModuleType("__main__")
    sys.modules["__main__"].__package__ = module


def main() -> int | None:
    """Import everything, fork for each order, and run the module of the order in the fork."""
    gc.disable()
    mains: dict[str, Callable[[], int | None]] = {
        module: import_module(name).main for module, name in MAINS.items()
    }
    from fetchfleet.worker.cli import batches, hosts, policy, run, status, submit, users  # noqa: F401, PLC0415

    gc.collect()
    gc.freeze()
    _set_up_process(*(order := _serve(socket.socket(fileno=int(sys.argv[1])))))
    return mains[order[0]["words"][0]]()


if __name__ == "__main__":
    sys.exit(main())
