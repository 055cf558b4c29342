"""The commands with which an operator inspects a running fleet."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.client.batch import Batch
from tests.support.waiting import wait_until
from tests.support.workers import Workers, fetchfleet, workers
from tools.origin.behaviours import by_path, held, ok, retry_after, stall_headers, status
from tools.origin.server import Origin

NO_BATCH = "0123456789abcdef"


class Operator:
    """Runs commands for the fleet on one Redis."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url

    async def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in a thread, so that the event loop can serve the origins."""
        return await asyncio.to_thread(fetchfleet, *arguments, FETCHFLEET_REDIS_URL=self._redis_url)

    async def json_lines(self, *arguments: str) -> list[Any]:
        """Return the JSON lines that the command prints with --json."""
        completed = await self.run(*arguments, "--json")
        assert completed.returncode == 0, completed.stderr
        return [json.loads(line) for line in completed.stdout.splitlines()]


@pytest.fixture
def operator(redis_url: str) -> Operator:
    """An operator of the test's fleet."""
    return Operator(redis_url)


async def ended(batch: Batch) -> None:
    """Wait until the batch has ended."""
    await wait_until(lambda: _ended(batch), f"batch {batch.id} to end", 30)


async def _ended(batch: Batch) -> bool:
    return (await batch.counts()).ended


async def some_failed(fleet: Fleet, running: Workers, origin: Origin) -> Batch:
    """Fetch a batch of three: one is stored, two fail with an HTTP status."""
    await wait_until(running.started, "the workers")
    batch = await fleet.submit([origin.url("/here"), origin.url("/gone"), origin.url("/lost")])
    await ended(batch)
    return batch


BEHAVIOUR = by_path({"/gone": status(404), "/lost": status(410)}, otherwise=ok(b"body"))


async def test_status_without_workers_names_the_command_that_starts_one(
    fleet: Fleet, operator: Operator
) -> None:
    """It also shows the backlog and its age."""
    await fleet.submit([f"http://a.example/{i}" for i in range(3)])
    printed = await operator.run("status")
    (read,) = await operator.json_lines("status")

    assert "0 workers" in printed.stdout
    assert "3 fetches to do in 1 lane, the oldest has waited" in printed.stdout
    assert "start one: fetchfleet worker" in printed.stdout
    assert (3, 1, []) == (read["backlog"], read["lanes_in_all"], read["workers"])
    assert read["oldest_s"] >= 0
    assert [("a.example", 3)] == [(lane["name"], lane["waiting"]) for lane in read["lanes"]]


async def test_status_shows_busy_and_cooling_lanes(
    redis_url: str, fleet: Fleet, operator: Operator, tmp_path: Path
) -> None:
    """One host holds its responses, the other one sends 429 with Retry-After."""
    may_end = asyncio.Event()

    async def busy_and_cooling() -> dict[str, Any] | None:
        (read,) = await operator.json_lines("status")
        lanes = {lane["name"]: lane for lane in read["lanes"]}
        busy, cooling = lanes.get("127.0.0.201", {}), lanes.get("127.0.0.202", {})
        found = busy.get("in_flight") == 2 and cooling.get("why") == "cooling" and read["workers"]
        return read if found else None

    async with (
        Origin.serving("127.0.0.201", held(may_end)) as slow,
        Origin.serving("127.0.0.202", retry_after(60)) as throttling,
    ):
        with workers(1, redis_url, tmp_path):
            batch = await fleet.submit([slow.url("/1"), slow.url("/2"), throttling.url("/")])
            read = await wait_until(busy_and_cooling, "both lanes to show", 30)
            printed = await operator.run("status")
            await batch.cancel()
            may_end.set()
            await ended(batch)

    assert 3 == read["backlog"]
    assert [("worker-1", 2)] == [(worker["id"], worker["in_flight"]) for worker in read["workers"]]
    assert "1 worker" in printed.stdout
    assert "cooling" in printed.stdout


async def test_batches_lists_the_newest_first_with_their_states(
    redis: Redis, fleet: Fleet, operator: Operator
) -> None:
    """An empty batch has no line."""
    first = await fleet.submit(["http://a.example/1"])
    await redis.zadd(keys.BATCHES, {first.id: 1})  # both may have the same millisecond
    second = await fleet.submit(["http://a.example/2", "http://a.example/3"])
    await fleet.submit([])
    await second.cancel()
    printed = await operator.run("batches")
    read = await operator.json_lines("batches")

    assert [(second.id, "cancelling", 2), (first.id, "running", 1)] == [
        (batch["id"], batch["state"], batch["counts"]["total"]) for batch in read
    ]
    assert printed.stdout.index(second.id) < printed.stdout.index(first.id)


async def test_results_continue_after_a_printed_position(
    redis_url: str, fleet: Fleet, operator: Operator, tmp_path: Path
) -> None:
    """The position after the last result leaves none. Results can be filtered by outcome."""
    async with Origin.serving("127.0.0.203", BEHAVIOUR) as origin:
        with workers(1, redis_url, tmp_path) as running:
            batch = await some_failed(fleet, running, origin)
            everything = await operator.run("results", batch.id, "--json")
            position = everything.stderr.split("--after ")[1].strip()
            nothing = await operator.run("results", batch.id, "--after", position)
            failed = await operator.json_lines("results", batch.id, "--outcome", "failed", "--follow")
            plain = await operator.run("results", batch.id)

    assert 3 == len(everything.stdout.splitlines())
    assert "" == nothing.stdout
    assert {404, 410} == {result["status"] for result in failed}
    assert 1 == plain.stdout.count("stored")


async def test_dead_letters_are_listed_shown_retried_and_purged(
    redis_url: str, redis: Redis, fleet: Fleet, operator: Operator, tmp_path: Path
) -> None:
    """The commands select letters by reason, host or batch, and retried letters become a new batch."""
    async with Origin.serving("127.0.0.204", BEHAVIOUR) as origin:
        with workers(1, redis_url, tmp_path) as running:
            batch = await some_failed(fleet, running, origin)
            await redis.rpush(keys.INBOX, "no fetch")  # type: ignore[misc]
            await wait_until(lambda: _length(redis, 3), "the third dead letter")
            listed = await operator.json_lines("dead", "list")
            of_batch = await operator.json_lines(
                "dead", "list", "--batch", batch.id, "--reason", "http_status"
            )
            shown = await operator.json_lines("dead", "show", of_batch[0]["position"])
            vague = await operator.run("dead", "retry")
            (retried,) = await operator.json_lines("dead", "retry", "--host", "127.0.0.204")
            (again,) = [fleet.batch(found) for found in retried["batches"]]
            await ended(again)
            new = [result async for result in again.results()]
            listed_batches = await operator.json_lines("batches")
            old = await operator.run("results", batch.id)
            left = await operator.json_lines("dead", "list", "--batch", batch.id)
            purged = await operator.json_lines("dead", "purge", "--all")
    targets = [seen.target for seen in origin.requests]

    assert ["http_status", "http_status", "invalid"] == [letter["reason"] for letter in listed]
    assert ["/gone", "/lost"] == sorted(urlsplit(letter["fetch"]["url"]).path for letter in of_batch)
    assert [of_batch[0]] == shown
    assert 2 == vague.returncode
    assert "--all" in vague.stderr
    assert (2, 0) == (retried["fetches"], retried["left"])
    assert {letter["id"] for letter in of_batch} == {result.retry_of for result in new}
    assert {batch.id: [again.id], again.id: []} == {row["id"]: row["retried_as"] for row in listed_batches}
    assert f"were retried; see: fetchfleet results {again.id}" in old.stderr
    assert (2, 2) == (targets.count("/gone"), targets.count("/lost"))
    assert [] == left
    assert [{"purged": 3}] == purged


async def _length(redis: Redis, count: int) -> bool:
    return bool(await redis.xlen(keys.DEAD) == count)


async def test_cancel_ends_a_batch_and_prints_its_counts(
    redis_url: str, fleet: Fleet, operator: Operator, tmp_path: Path
) -> None:
    """A worker cancels requests in flight at once."""
    async with Origin.serving("127.0.0.205", stall_headers(60)) as origin:
        with workers(1, redis_url, tmp_path):
            batch = await fleet.submit([origin.url(f"/{i}") for i in range(30)])
            await wait_until(lambda: origin.requests, "a request")
            (read,) = await operator.json_lines("cancel", batch.id)

    assert (30, True) == (read["cancelled"], read["ended"])


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("results", "nonsense"), 2, "fetchfleet batches"),
        (("cancel", "nonsense"), 2, "fetchfleet batches"),
        (("results", NO_BATCH), 1, "is not in Redis"),
        (("cancel", NO_BATCH), 1, "is not in Redis"),
        (("results", NO_BATCH, "--after", "yesterday"), 2, "is not a position"),
        (("dead", "show", "1-1"), 1, "fetchfleet dead list"),
        (("dead", "show", "x"), 2, "is not a position"),
        (("dead", "purge", "--all", "--host", "a"), 2, "--all"),
    ],
)
async def test_an_error_names_the_remedy(
    operator: Operator, arguments: tuple[str, ...], code: int, named: str
) -> None:
    """The message is on standard error; standard output is empty."""
    printed = await operator.run(*arguments)

    assert (code, "") == (printed.returncode, printed.stdout)
    assert named in printed.stderr
    assert "Traceback" not in printed.stderr


@pytest.mark.parametrize("command", ["status", "batches", "dead list"])
def test_an_unreachable_redis_error_names_the_sources_of_its_url(command: str) -> None:
    """The flag or the variable must be corrected."""
    printed = fetchfleet(*command.split(), "--redis", "redis://127.0.0.1:1", FETCHFLEET_REDIS_PATIENCE_S="0")

    assert 3 == printed.returncode
    assert "(--redis, FETCHFLEET_REDIS_URL)" in printed.stderr
    assert "Traceback" not in printed.stderr


async def test_the_shell_completes_commands_and_batch_ids(redis_url: str, fleet: Fleet) -> None:
    """Bash loads the completion that `fetchfleet --install-completion` sets up."""
    batch = await fleet.submit(["http://a.example/"])

    assert {"status", "batches", "results", "cancel", "dead"} <= set(
        await completions(redis_url, "fetchfleet ")
    )
    assert [batch.id] == await completions(redis_url, f"fetchfleet cancel {batch.id[:3]}")


async def completions(redis_url: str, typed: str) -> list[str]:
    """Return the shell's completions of these words."""
    words = typed.split(" ")
    environment = {
        **os.environ,
        "FETCHFLEET_REDIS_URL": redis_url,
        "_FETCHFLEET_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words) - 1),
    }
    command = [str(Path(sys.executable).parent / "fetchfleet")]
    printed = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return printed.stdout.split()
