"""`fetchfleet events` follows a fleet until it is interrupted."""

import asyncio
import json
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fetchfleet import Fleet
from tests.e2e.cli.test_outages import STARTS_S, Command
from tests.support.own_redis import own_redis
from tests.support.waiting import wait_until
from tests.support.workers import workers
from tools.origin.behaviours import ok
from tools.origin.server import Origin


async def next_line(command: Command) -> dict[str, Any]:
    """Return the fields of the next line of standard output."""
    assert command.process.stdout
    fields: dict[str, Any] = json.loads(await asyncio.to_thread(command.process.stdout.readline))
    return fields


async def test_events_continue_after_an_outage_and_end_with_0_if_interrupted(tmp_path: Path) -> None:
    """Standard output gets JSON Lines because it is not a terminal. Only the wanted events are printed."""
    with ExitStack() as stack:
        server = stack.enter_context(own_redis())
        await wait_until(server.responds, "Redis")
        async with Origin.serving("127.0.0.198", ok()) as origin, Fleet(server.url) as fleet:
            running = stack.enter_context(workers(1, server.url, tmp_path / "fleet"))
            await wait_until(running.started, "the worker", STARTS_S)
            wanted = ("--event", "fetch.*", "--host", "127.0.0.198")
            following = Command(stack, "events", *wanted, "--redis", server.url)
            first = asyncio.create_task(next_line(following))
            paths = iter(range(100))
            while not first.done():  # the worker notices the watcher with its next heartbeat
                await (await fleet.submit([origin.url(f"/{next(paths)}")])).wait()
            assert "fetch.finished" == (await first)["event"]

            await asyncio.to_thread(server.kill)
            complaint = await following.next_error_line()
            server.start()
            await wait_until(server.responds, "Redis", STARTS_S)
            answered = await following.next_error_line()
            batch = await fleet.submit([origin.url("/last")])
            while (line := await next_line(following)).get("batch") != batch.id:
                assert "fetch.finished" == line["event"]
            following.process.send_signal(signal.SIGINT)
            ended = await following.ended()

    assert complaint.startswith("Redis does not answer: ")
    assert answered.startswith("Redis answers again")
    assert (0, []) == (ended.code, ended.errors)
