"""Many origins in one child process, so that they and what they judge do not share a loop.

A town maps each host to its behaviour. The function that makes one is module-level, because the
child imports it by name:

    with origins_in_child(hosts_of_the_demo) as town:
        town.urls["127.0.0.21"]             # "http://127.0.0.21:40123"
        town.report()["127.0.0.21"].high_water
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

MakeTown = Callable[[], Mapping[str, Behaviour]]
Pipe: TypeAlias = "Connection[Any, Any]"
STOP_WITHIN_S = 5.0


@dataclass(frozen=True)
class Report:
    """What one origin has seen until now."""

    requests: list[Seen]
    windows: list[Window]
    connections_opened: int
    high_water: int


class Town:
    """The origins of a child process, seen from its parent."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self.urls = cast("dict[str, str]", pipe.recv())

    def report(self) -> dict[str, Report]:
        """What each host has seen until now."""
        self._pipe.send("report")
        return cast("dict[str, Report]", self._pipe.recv())


@contextmanager
def origins_in_child(make_town: MakeTown) -> Iterator[Town]:
    """A town for the length of a block; RuntimeError when one of its origins met a fault."""
    # Spawned, not forked: the parent has a loop and threads that a fork would tear.
    spawning = get_context("spawn")
    ours, theirs = spawning.Pipe()
    child = spawning.Process(target=_live, args=(theirs, make_town), daemon=True)
    child.start()
    theirs.close()
    try:
        with ours:
            yield Town(ours)
    finally:
        _join(child)
    if child.exitcode != 0:
        raise RuntimeError(f"the origins' process ended with {child.exitcode}: see its stderr")


def _join(child: SpawnProcess) -> None:
    child.join(STOP_WITHIN_S)
    if child.is_alive():
        child.kill()
        child.join()


def _live(pipe: Pipe, make_town: MakeTown) -> None:
    asyncio.run(_serve(pipe, make_town()))


async def _serve(pipe: Pipe, town: Mapping[str, Behaviour]) -> None:
    """Serves the town, and reports whenever it is asked to, until the parent hangs up."""
    async with AsyncExitStack() as stack:
        origins = {
            host: await stack.enter_async_context(Origin.serving(host, behaviour))
            for host, behaviour in town.items()
        }
        pipe.send({host: origin.url("") for host, origin in origins.items()})
        while await asyncio.to_thread(_is_asked, pipe):
            pipe.send({host: report_of(origin) for host, origin in origins.items()})


def _is_asked(pipe: Pipe) -> bool:
    try:
        pipe.recv()
    except EOFError:
        return False
    return True


def report_of(origin: Origin) -> Report:
    """What the origin has seen until now."""
    return Report(origin.requests, origin.windows, origin.connections_opened, origin.high_water)
