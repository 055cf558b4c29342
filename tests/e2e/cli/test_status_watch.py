"""`fetchfleet status --watch` shows the state until it is interrupted."""

import asyncio
import json
import signal
from contextlib import ExitStack

import pytest

from fetchfleet import Fleet
from tests.e2e.cli.test_outages import Command


@pytest.mark.parametrize("words", [("--watch", "--every", "0.1"), ("--every", "0.1")])
async def test_it_prints_lines_of_json_and_ends_with_0_if_interrupted(
    redis_url: str, fleet: Fleet, words: tuple[str, ...]
) -> None:
    """Each line is a whole status, as without --watch."""
    with ExitStack() as stack:
        watching = Command(stack, "status", *words, "--json", "--redis", redis_url)
        assert watching.process.stdout
        first = json.loads(await asyncio.to_thread(watching.process.stdout.readline))
        await fleet.submit(["http://a.example/"])
        backlog = 0
        while not backlog:
            line = json.loads(await asyncio.to_thread(watching.process.stdout.readline))
            backlog = line["backlog"]
        watching.process.send_signal(signal.SIGINT)
        ended = await watching.ended()

    assert (0, 1) == (first["backlog"], backlog)
    assert first.keys() == line.keys()
    assert (0, []) == (ended.code, ended.errors)
