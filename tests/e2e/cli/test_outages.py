"""Commands wait for Redis during an outage, and name the command that continues them."""

import asyncio
import json
import os
import shlex
import signal
import subprocess
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import connect
from tests.support.fork_server import COMMAND, Process
from tests.support.own_redis import OwnRedis, own_redis
from tests.support.waiting import wait_until
from tests.support.workers import fetchfleet, workers
from tools.origin.behaviours import held, ok, sequence
from tools.origin.server import Origin

STARTS_S = 30.0
ENDS_S = 40.0


class Ended(NamedTuple):
    """The exit code and output of a command."""

    code: int
    out: list[str]
    errors: list[str]
    """The lines on standard error."""

    @property
    def redis_errors(self) -> list[str]:
        """The errors about Redis."""
        return [line for line in self.errors if line.startswith("Redis ")]


class Command:
    """A running `fetchfleet` command; the stack kills it."""

    def __init__(self, stack: ExitStack, *arguments: str | Path, patience_s: float = 30.0) -> None:
        self.process = Process(
            COMMAND,
            *arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "200", "FETCHFLEET_REDIS_PATIENCE_S": str(patience_s)},
        )
        stack.callback(self.process.kill)

    async def next_error_line(self) -> str:
        """Return the next line on standard error."""
        assert self.process.stderr
        return await asyncio.to_thread(self.process.stderr.readline)

    async def ended(self) -> Ended:
        """Wait until the command ends; return its exit code and the remaining output."""
        out, errors = await asyncio.to_thread(self.process.communicate, timeout=ENDS_S)
        return Ended(self.process.returncode, out.splitlines(), errors.splitlines())


def urls_in(lines: list[str]) -> Counter[str]:
    """Count the results in JSON lines by URL."""
    return Counter(json.loads(line)["url"] for line in lines)


async def test_commands_wait_for_redis_and_continue(tmp_path: Path) -> None:
    """During the outage a submit is suspended, and new commands start. All end with 0."""
    go_on = asyncio.Event()
    report = tmp_path / "report"
    with ExitStack() as stack:
        server = stack.enter_context(own_redis())
        await wait_until(server.responds, "Redis")
        where = ("--redis", server.url)
        async with (
            Origin.serving("127.0.0.198", sequence(*[ok()] * 5, held(go_on))) as origin,
            Origin.serving("127.0.0.200", sequence(ok(), held(go_on))) as other,
            Fleet(server.url) as fleet,
        ):
            listed = [origin.url(f"/{place}") for place in range(15)]
            (tmp_path / "list").write_text("\n".join(listed))
            running = stack.enter_context(workers(1, server.url, tmp_path / "fleet"))
            await wait_until(running.started, "the worker", STARTS_S)
            batch = await fleet.submit([other.url("/1"), other.url("/2")])
            following = Command(stack, "submit", tmp_path / "list", *where, "--report", report)
            await wait_until(lambda: len(origin.requests) > 5, "the work", STARTS_S)
            reading = Command(stack, "results", batch.id, "--follow", "--json", *where)
            assert reading.process.stdout
            first = await asyncio.to_thread(reading.process.stdout.readline)

            await asyncio.to_thread(server.kill)
            following.process.send_signal(signal.SIGSTOP)
            begun = [Command(stack, "status", *where), Command(stack, "submit", tmp_path / "list", *where)]
            error_lines = await asyncio.gather(*(command.next_error_line() for command in (reading, *begun)))
            server.start()
            await wait_until(server.responds, "Redis", STARTS_S)
            following.process.send_signal(signal.SIGCONT)
            go_on.set()
            followed, read, *others = await asyncio.gather(
                *(command.ended() for command in (following, reading, *begun))
            )

    assert [0, 0, 0, 0] == [one.code for one in (followed, read, *others)], (followed, read, others)
    assert Counter(listed) == urls_in(report.read_text().splitlines())
    assert Counter([other.url("/1"), other.url("/2")]) == urls_in([first, *read.out])
    assert all(line.startswith("Redis does not answer: ") for line in error_lines)
    assert [1, 1, 1] == [len(one.redis_errors) for one in (read, *others)]
    assert len(followed.redis_errors) <= 2


async def exits_with_3(command: Command) -> list[str]:
    """Wait until the command gives up on Redis; return the words of the command that continues it."""
    ended = await command.ended()
    assert 3 == ended.code, ended
    assert 1 == len(ended.redis_errors), ended
    assert "cannot reach Redis at" in ended.errors[-2]
    program, *words = shlex.split(ended.errors[-1].removeprefix("continue with: "))
    assert "fetchfleet" == program, ended
    return words


async def again(server: OwnRedis) -> None:
    """Start the server again."""
    server.start()
    await wait_until(server.responds, "Redis", STARTS_S)


async def test_exit_3_names_the_command_that_continues(tmp_path: Path) -> None:
    """A submit is completed and a report is continued, with each result once."""
    go_on, report = asyncio.Event(), tmp_path / "my report"
    with ExitStack() as stack:
        server = stack.enter_context(own_redis())
        async with Origin.serving("127.0.0.199", sequence(*[ok()] * 5, held(go_on))) as origin:
            listed = [origin.url(f"/{place}") for place in range(12)]
            (tmp_path / "list").write_text("\n".join(listed))
            await asyncio.to_thread(server.kill)
            submit = Command(stack, "submit", tmp_path / "list", "--redis", server.url, patience_s=0.2)
            complete = await exits_with_3(submit)
            await again(server)
            done = await asyncio.to_thread(fetchfleet, *complete)
            assert complete[complete.index("--batch") + 1] == done.stdout.strip(), done.stderr
            running = stack.enter_context(workers(1, server.url, tmp_path / "fleet"))
            await wait_until(running.started, "the worker", STARTS_S)

            follow = Command(stack, *complete, "--report", report, patience_s=0.2)
            await wait_until(lambda: len(origin.requests) > 5, "the work", STARTS_S)
            await wait_until(lambda: reported(server, done.stdout.strip()), "the results", STARTS_S)
            await asyncio.to_thread(server.kill)
            *words, append_to, path = await exits_with_3(follow)
            cancel = Command(stack, "cancel", done.stdout.strip(), "--redis", server.url, patience_s=0.2)
            assert ["cancel", done.stdout.strip(), "--redis", server.url] == await exits_with_3(cancel)
            await again(server)
            go_on.set()
            rest = await Command(stack, *words).ended()

    assert (">>", report) == (append_to, Path(path))
    assert 0 == rest.code, rest
    assert Counter(listed) == urls_in([*report.read_text().splitlines(), *rest.out])


async def reported(server: OwnRedis, batch_id: str) -> bool:
    """Return whether results exist, and all of them were reported and trimmed."""
    async with Fleet(server.url) as fleet, connect(server.url) as redis:
        counts = await fleet.batch(batch_id).counts()
        return counts.done >= 5 and await redis.xlen(keys.results(batch_id)) == 0
