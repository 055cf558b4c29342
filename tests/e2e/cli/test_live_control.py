"""Commands that control a running fleet: pause, resume, policy, drain, reset and explain."""

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fetchfleet import Fetch, Fleet, Outcome
from fetchfleet.jobs.client.batch import Batch
from tests.support.origins import serve_origins
from tests.support.waiting import wait_until
from tests.support.workers import QUICK_POLICY, Workers, fetchfleet, workers
from tools.one_worker import results_of
from tools.origin import judge
from tools.origin.behaviours import OK, held, latency, reset, retry_after, status
from tools.origin.server import Origin

NO_FETCH = "0123456789abcdef-00000001"


class Operator:
    """Runs commands for the fleet on one Redis."""

    def __init__(self, redis_url: str) -> None:
        self.environment = {"FETCHFLEET_REDIS_URL": redis_url}

    async def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in a thread, so that the event loop can serve the origins."""
        return await asyncio.to_thread(fetchfleet, *arguments, **self.environment)

    async def output(self, *arguments: str) -> str:
        """Run a command that must succeed; return its output."""
        completed = await self.run(*arguments)
        assert completed.returncode == 0, completed.stderr
        return completed.stdout

    async def json(self, *arguments: str) -> dict[str, Any]:
        """Return the output of the command with --json, decoded."""
        decoded: dict[str, Any] = json.loads(await self.output(*arguments, "--json"))
        return decoded

    async def explain_all(self, *names: str) -> list[dict[str, Any]]:
        """Return the explanation of each host or fetch."""
        return await asyncio.gather(*(self.json("explain", name) for name in names))


@pytest.fixture
def operator(redis_url: str) -> Operator:
    """An operator of the test's fleet."""
    return Operator(redis_url)


async def all_have_changed(running: Workers, changes: int) -> None:
    """Wait until each of three workers has logged this many policy changes."""
    await wait_until(lambda: len(running.events("policy.changed")) >= changes * 3, "the workers to apply it")


async def fetch_thirty(fleet: Fleet, origin: Origin) -> None:
    """Wait until another host has served 30 requests."""
    await results_of(await fleet.submit([origin.url(f"/by/{i}") for i in range(30)]))


async def test_a_paused_host_gets_no_request_until_it_is_resumed(
    redis_url: str, fleet: Fleet, operator: Operator, tmp_path: Path
) -> None:
    """Requests in flight end. After the resume every fetch is stored at its first attempt."""
    hosts = {"paused": ("127.0.3.51", latency(0.02)), "other": ("127.0.3.52", latency(0.02))}
    async with serve_origins(hosts) as origins:
        paused = origins["paused"]
        with workers(3, redis_url, tmp_path) as running:
            await wait_until(running.started, "the workers")
            batch = await fleet.submit([paused.url(f"/{i}") for i in range(700)])
            await wait_until(lambda: len(paused.requests) >= 20, "some requests")
            output_text = await operator.output("pause", "127.0.3.51")
            await all_have_changed(running, 1)
            await wait_until(lambda: not paused.in_progress, "what is in flight to end")
            seen = len(paused.requests)
            await fetch_thirty(fleet, origins["other"])
            late = await fleet.submit([paused.url("/late")])
            explained = await operator.json("explain", "127.0.3.51")
            still = len(paused.requests)
            await operator.output("resume", "127.0.3.51")
            results = [result for one in (batch, late) for result in await results_of(one)]

    assert "fetchfleet resume 127.0.3.51" in output_text
    assert seen < 700
    assert seen == still
    assert ("paused", None) == (explained["state"], explained["until_ms"])
    assert "fetchfleet resume" in explained["why"]
    assert {Outcome.STORED} == {result.outcome for result in results}
    assert {1} == {result.attempts for result in results}


async def test_a_policy_change_applies_to_held_lanes(
    redis_url: str, fleet: Fleet, operator: Operator, tmp_path: Path
) -> None:
    """The concurrency falls at once, and returns to the file's value after unset."""
    async with Origin.serving("127.0.3.53", latency(0.02)) as origin:
        with workers(3, redis_url, tmp_path) as running:
            await wait_until(running.started, "the workers")
            batch = await fleet.submit([origin.url(f"/{i}") for i in range(3000)])
            await wait_until(lambda: origin.in_progress >= 8, "the lane to be at work")
            await operator.output("policy", "set", "127.0.3.53", "concurrency=2")
            await all_have_changed(running, 1)
            await wait_until(lambda: origin.in_progress <= 2, "what is in flight to end")
            from_place = len(origin.requests)
            shown = await operator.json("policy", "show")
            held = await operator.json("policy", "show", "127.0.3.53")
            await wait_until(lambda: len(origin.requests) > from_place + 10, "requests under it")
            until_place = len(origin.requests)
            await operator.output("policy", "unset", "127.0.3.53", "concurrency")
            await wait_until(lambda: origin.in_progress >= 8, "the file's value to hold again")
            cleared = await operator.json("policy", "show")
            await batch.cancel()
            await results_of(batch)

    few = origin.requests[from_place:until_place]
    assert len(few) > 10
    assert 2 == judge.most_at_once(few)
    assert {"127.0.3.53": {"concurrency": 2}} == shown
    assert (2, 5) == (held["concurrency"], held["attempts"])
    assert {} == cleared


WAITING = (
    QUICK_POLICY
    + """
concurrency = 2
[host."127.0.3.62"]
breaker_reset_s = 3600
[host."127.0.3.63"]
rate_per_s = 0.01
[host."127.0.3.64"]
retry_base_s = 3600
retry_cap_s = 3600
"""
)


async def test_explain_names_the_reason_for_waiting(
    redis_url: str, fleet: Fleet, operator: Operator, tmp_path: Path
) -> None:
    """Cool-down, breaker, rate limit, retry, concurrency and no worker, also of ended and unknown fetches."""
    may_end = asyncio.Event()
    hosts = {
        "cooling": ("127.0.3.61", retry_after(3600)),
        "breaker": ("127.0.3.62", reset),
        "pacing": ("127.0.3.63", OK),
        "retry": ("127.0.3.64", status(500)),
        "busy": ("127.0.3.65", held(may_end)),
    }
    async with serve_origins(hosts) as origins:
        batches = {
            name: await fleet.submit([o.url(f"/{i}") for i in range(6 if name != "retry" else 1)])
            for name, o in origins.items()
        }
        unserved = await operator.json("explain", "127.0.3.65")
        with workers(3, redis_url, tmp_path, WAITING):
            without_file = await wait_until(_explained(operator, "127.0.3.63", "pacing"), "pacing", 20)
            operator.environment["FETCHFLEET_POLICY"] = str(tmp_path / "policy.toml")
            reads = await asyncio.gather(
                *(
                    wait_until(_explained(operator, address, name), f"{name} to be shown", 20, 0.2)
                    for name, (address, _) in hosts.items()
                )
            )
            found = dict(zip(hosts, reads, strict=True))
            first, last = batches["busy"].ids[0], batches["busy"].ids[5]
            claimed, behind = await operator.explain_all(first, last)
            in_words = await operator.output("explain", "127.0.3.62", "--redis", redis_url)
            may_end.set()
            await results_of(batches["busy"])
            ended, idle, unknown = await operator.explain_all(first, "127.0.3.65", NO_FETCH)
            await _end(batches)

    assert "no worker" == unserved["state"]
    assert "fetchfleet worker" in unserved["why"]
    assert {name: name for name in hosts} == {name: read["state"] for name, read in found.items()}
    assert "asked to back off with 429" in found["cooling"]["why"]
    assert "does not respond" in found["breaker"]["why"]
    assert "1st time" in in_words
    assert f"fetchfleet reset 127.0.3.62 --redis {redis_url}" in in_words
    assert "\nlast failure: " in in_words
    assert "0.01 requests" in without_file["why"]
    assert "0.01 requests" in found["pacing"]["why"]
    assert "2 of 2 in flight, the concurrency limit" == found["busy"]["why"]
    assert all(found[name]["until_ms"] for name in ("cooling", "breaker", "pacing", "retry"))
    assert {"429"} == {answer["what"] for answer in found["cooling"]["answers"]}
    assert ("claimed", "busy") == (claimed["state"], claimed["lane"]["state"])
    assert ("waiting", "127.0.3.65") == (behind["state"], behind["lane"]["lane"])
    assert behind["ahead"] <= 3
    assert ("stored", "stored") == (ended["state"], ended["result"]["outcome"])
    assert "idle" == idle["state"]
    assert "its batch is not in Redis" == unknown["why"]


def _explained(operator: Operator, address: str, state: str) -> Any:
    async def explained() -> dict[str, Any] | None:
        read = await operator.json("explain", address)
        # A busy lane is reported as such until its last response has ended.
        settled = read["in_flight"] == (2 if state == "busy" else 0)
        return read if read["state"] == state and settled else None

    return explained


async def _end(batches: dict[str, Any]) -> None:
    open_still: list[Batch] = [batch for name, batch in batches.items() if name != "busy"]
    for batch in open_still:
        await batch.cancel()
    for batch in open_still:
        await results_of(batch)


REFUSED = [
    (("explain", "no host"), "neither a host nor a fetch ID"),
    (("pause", "http://a..example/b"), "a..example"),
    (("pause", "a.example/b"), "leave the path out"),
    (("resume", "*"), "*"),
    (("policy", "set", "a.example", "concurrency"), "KEY=VALUE"),
    (("policy", "set", "a.example", "concurency=2"), "`concurency`"),
    (("policy", "set", "a.example", "concurrency=0"), "concurrency: must be between 1 and 1000, got 0"),
    (("policy", "set", "a.example", 'concurrency={"min":5,"max":2}'), "concurrency.max"),
    (("policy", "set", "*.example", "timeout=slow"), "timeout: 'slow' is not one of"),
    (("policy", "show", "a b"), "a b"),
]


async def test_a_refused_steering_command_names_the_fault_and_changes_nothing(operator: Operator) -> None:
    """It exits with 2, and the policy is unchanged."""
    refusals = await asyncio.gather(*(operator.run(*arguments) for arguments, _ in REFUSED))
    for (arguments, named), refused in zip(REFUSED, refusals, strict=True):
        assert (2, "") == (refused.returncode, refused.stdout), arguments
        assert named in refused.stderr
        assert "Traceback" not in refused.stderr
    assert {} == await operator.json("policy", "show")


async def test_a_policy_set_before_any_worker_applies_to_the_first_request(
    redis_url: str, fleet: Fleet, operator: Operator, tmp_path: Path
) -> None:
    """A live default overrides the default of the workers' file."""
    async with Origin.serving("127.0.3.66", latency(0.02)) as origin:
        await operator.output("policy", "set", "default", "concurrency=1", "attempts=2")
        batch = await fleet.submit([Fetch(url=origin.url(f"/{i}")) for i in range(20)])
        with workers(3, redis_url, tmp_path, QUICK_POLICY + "concurrency = 6\n"):
            await results_of(batch)

    assert 1 == origin.high_water


async def test_one_host_of_a_wider_pause_resumes_only_as_an_exception(operator: Operator) -> None:
    """The others stay paused until the wider pause ends, and the exception ends with it."""
    await operator.output("pause", "default")
    refused = await operator.run("resume", "a.example")
    await operator.output("resume", "a.example", "--except")
    resumed, other = await asyncio.gather(
        *(operator.json("policy", "show", host) for host in ("a.example", "b.example"))
    )
    await operator.output("resume", "default")
    left = await operator.json("policy", "show")

    assert (2, "") == (refused.returncode, refused.stdout)
    assert "fetchfleet resume a.example --except" in refused.stderr
    assert (False, True) == (resumed["paused"], other["paused"])
    assert {} == left


DOWN_FOR_LONG = """\
[default]
retry_base_s = 0.05
retry_cap_s = 0.2
breaker_failures = 2
breaker_reset_s = 3600
"""


async def test_a_worker_is_drained_and_a_repaired_host_reset(
    redis_url: str, fleet: Fleet, operator: Operator, tmp_path: Path
) -> None:
    """The other worker fetches the waiting fetches of the host at once after the reset."""
    async with Origin.serving("127.0.3.67", reset) as origin:
        with workers(2, redis_url, tmp_path, DOWN_FOR_LONG) as running:
            await wait_until(running.started, "the workers")
            batch = await fleet.submit([origin.url(f"/{i}") for i in range(6)])
            await wait_until(lambda: running.events("lane.breaker_open"), "the breaker to open")
            origin.behaviour = OK
            drained, other = (line["worker"] for line in running.events("worker.started"))
            output_text = await operator.output("drain", drained)
            shown = await operator.json("status")
            reset_output = await operator.output("reset", origin.url("/"))
            results = await results_of(batch)
            again = await operator.output("undrain", drained)
            unknown = await operator.run("drain", "unknown")

    assert "is drained and holds no lane" in output_text
    assert {drained: True, other: False} == {of["id"]: of["draining"] for of in shown["workers"]}
    assert "127.0.3.67: reset" in reset_output
    assert {(Outcome.STORED, other)} == {(result.outcome, result.worker) for result in results}
    assert "acquires lanes again" in again
    assert 2 == unknown.returncode
    assert other in unknown.stderr
