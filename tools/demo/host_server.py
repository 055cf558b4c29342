"""The crowd in a container: each host on a port of its own, and a desk that says what they saw."""

import asyncio
import signal
from contextlib import AsyncExitStack

import msgspec

from tools.demo import hosts
from tools.demo.checker import saw
from tools.origin.behaviours import ok
from tools.origin.process import report_of
from tools.origin.server import Origin

EVERYWHERE = "0.0.0.0"  # noqa: S104 a container's network is its own


async def serve() -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with AsyncExitStack() as stack:
        origins = {
            name: await stack.enter_async_context(Origin.serving(EVERYWHERE, behaviour, hosts.PORTS[name]))
            for name, behaviour in hosts.behaviours().items()
        }

        def tell(_: str) -> bytes:
            return msgspec.json.encode([saw(name, report_of(origin)) for name, origin in origins.items()])

        # Opened last: who is answered here may go on to any host.
        await stack.enter_async_context(Origin.serving(EVERYWHERE, ok(tell), hosts.DESK_PORT))
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(serve())
