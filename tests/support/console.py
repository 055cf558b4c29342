"""The server of the console for tests: its app in this process, or the command in one of its own."""

import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx

from fetchfleet.worker.console.access.credentials import Token
from fetchfleet.worker.console.app import console_app
from fetchfleet.worker.console.server import ServeOptions, connected
from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.settings import Settings
from tests.support.fork_server import COMMAND, Process
from tests.support.waiting import wait_until

TOKEN = "fleet-token-0123456789abcdef"
PORT = 8080
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@asynccontextmanager
async def console(
    redis_url: str, *, token: str | None = None, base_url: str = f"http://localhost:{PORT}", **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of an app on the Redis. options: of ServeOptions, and settings."""
    served = {name: options.pop(name) for name in ("read_only", "is_https") if name in options}
    settings = Settings(redis_url=redis_url, redis_patience_s=options.pop("redis_patience_s", 1.0), **options)
    serve = ServeOptions(Token(token) if token else None, **served)
    async with connected(settings, serve, get_logger(worker="console"), PORT) as services:
        transport = httpx.ASGITransport(console_app(services), client=("192.0.2.7", 40000))
        async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
            yield client


@contextmanager
def served(log: Path, *arguments: str, **environment: str) -> Iterator["Process"]:
    """Run `fetchfleet serve` on a free port during the block; its log goes to the file."""
    with log.open("wb") as output:
        command = ("serve", "--listen", "127.0.0.1:0", *arguments)
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        with Process(COMMAND, *command, env={**os.environ, **environment}, **streams) as process:
            try:
                yield process
            finally:
                process.kill()


async def url_in(log: Path) -> str:
    """Return the URL of the server, once its log has it."""
    await wait_until(lambda: "console.started" in log.read_text(), "the start")
    [listen] = re.findall(r'"listen":"([^"]+)"', log.read_text())  # noqa: ASYNC240 short
    return f"http://{listen}"
