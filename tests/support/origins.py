"""Named origins in the test process, so that a test can change their behaviour while the fleet runs."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from tools.origin.server import Behaviour, Origin


@asynccontextmanager
async def serve_origins(hosts: Mapping[str, tuple[str, Behaviour]]) -> AsyncIterator[dict[str, Origin]]:
    """Yield the origins by name. hosts: the address and behaviour of each name."""
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(Origin.serving(address, behaviour))
            for name, (address, behaviour) in hosts.items()
        }
