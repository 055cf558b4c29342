"""Serve the demo hosts in a container: one port for each host, and a report endpoint."""

import asyncio
import signal
from contextlib import AsyncExitStack

import msgspec

from tools.demo import hosts
from tools.demo.checker import summarize
from tools.origin.behaviours import ok
from tools.origin.process import report_of
from tools.origin.server import Origin

ANY_ADDRESS = "0.0.0.0"  # noqa: S104 private to the container's network


async def serve() -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with AsyncExitStack() as stack:
        origins = {
            name: await stack.enter_async_context(Origin.serving(ANY_ADDRESS, behaviour, hosts.PORTS[name]))
            for name, behaviour in hosts.behaviours().items()
        }

        def report(_: str) -> bytes:
            return msgspec.json.encode(
                [summarize(name, report_of(origin)) for name, origin in origins.items()]
            )

        # Opened last: once it responds, every host is up.
        await stack.enter_async_context(Origin.serving(ANY_ADDRESS, ok(report), hosts.REPORT_PORT))
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(serve())
