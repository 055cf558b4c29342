"""Run many origins in one child process, so that they do not share an event loop with the worker.

A module-level function returns the behaviour of each host. The child process imports it by name:

    with origins_in_child(hosts_of_the_demo) as origins:
        origins.urls["127.0.0.21"]  # "http://127.0.0.21:40123"
        origins.report()["127.0.0.21"].high_water
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, TypeAlias, cast

from tools.origin.server import Behaviour, Origin, Seen, Window

MakeHosts = Callable[[], Mapping[str, Behaviour]]
Pipe: TypeAlias = "Connection[Any, Any]"
STOP_WITHIN_S = 5.0


@dataclass(frozen=True)
class Report:
    """The record of one origin so far."""

    requests: list[Seen]
    windows: list[Window]
    """Back-off windows."""
    connections_opened: int
    high_water: int
    """Peak of concurrent requests."""


class OriginProcess:
    """The origins of a child process, as seen by the parent."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self.urls = cast("dict[str, str]", pipe.recv())

    def report(self) -> dict[str, Report]:
        """Return the record of each host so far."""
        self._pipe.send("report")
        return cast("dict[str, Report]", self._pipe.recv())


@contextmanager
def origins_in_child(make_hosts: MakeHosts) -> Iterator[OriginProcess]:
    """Serve the hosts in a child process during the block.

    Raises RuntimeError if the child process failed.
    """
    # Spawned, not forked: the parent has an event loop and threads.
    spawning = get_context("spawn")
    parent_end, child_end = spawning.Pipe()
    child = spawning.Process(target=_run, args=(child_end, make_hosts), daemon=True)
    child.start()
    child_end.close()
    try:
        with parent_end:
            yield OriginProcess(parent_end)
    finally:
        _join(child)
    if child.exitcode != 0:
        raise RuntimeError(f"the process of the origins exited with {child.exitcode}: see its stderr")


def _join(child: SpawnProcess) -> None:
    child.join(STOP_WITHIN_S)
    if child.is_alive():
        child.kill()
        child.join()


def _run(pipe: Pipe, make_hosts: MakeHosts) -> None:
    asyncio.run(_serve(pipe, make_hosts()))


async def _serve(pipe: Pipe, hosts: Mapping[str, Behaviour]) -> None:
    """Serve the hosts and send reports on request, until the parent closes the pipe."""
    async with AsyncExitStack() as stack:
        origins = {
            host: await stack.enter_async_context(Origin.serving(host, behaviour))
            for host, behaviour in hosts.items()
        }
        pipe.send({host: origin.url("") for host, origin in origins.items()})
        while await asyncio.to_thread(_receive_request, pipe):
            pipe.send({host: report_of(origin) for host, origin in origins.items()})


def _receive_request(pipe: Pipe) -> bool:
    """Wait for a request of the parent; return False once the pipe is closed."""
    try:
        pipe.recv()
    except EOFError:
        return False
    return True


def report_of(origin: Origin) -> Report:
    """Return the record of the origin so far."""
    return Report(origin.requests, origin.windows, origin.connections_opened, origin.high_water)
