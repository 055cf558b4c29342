"""Origins by name, in the test's own process: their behaviour can be swapped while the fleet runs."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from tools.origin.server import Behaviour, Origin


@asynccontextmanager
async def serve_origins(hosts: Mapping[str, tuple[str, Behaviour]]) -> AsyncIterator[dict[str, Origin]]:
    """The origins by the names that their addresses and behaviours were given."""
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(Origin.serving(address, behaviour))
            for name, (address, behaviour) in hosts.items()
        }
