"""The crowd in a container: each host on a port of its own, and a desk that says what they saw."""

import asyncio
import signal
from contextlib import AsyncExitStack

import msgspec

from scripts import crowd
from scripts.verdict import saw
from tests.support.origin import Origin, ok
from tests.support.origin_process import report_of

EVERYWHERE = "0.0.0.0"  # noqa: S104 a container's network is its own


async def serve() -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with AsyncExitStack() as stack:
        origins = {
            name: await stack.enter_async_context(Origin.serving(EVERYWHERE, behaviour, crowd.PORTS[name]))
            for name, behaviour in crowd.town().items()
        }

        def tell(_: str) -> bytes:
            return msgspec.json.encode([saw(name, report_of(origin)) for name, origin in origins.items()])

        # Opened last: who is answered here may go on to any host.
        await stack.enter_async_context(Origin.serving(EVERYWHERE, ok(tell), crowd.DESK_PORT))
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(serve())
