"""Worker processes: stopped, killed, or run by arq's command."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fetchfleet import Fleet, Outcome
from fetchfleet.worker.local.process import die_with_parent
from fetchfleet.worker.observability.process_health import ask_workers
from tests.support.named_workers import named_workers
from tests.support.own_redis import own_redis
from tests.support.waiting import wait_until
from tests.support.workers import QUICK_POLICY, fetchfleet, workers
from tools.origin.behaviours import latency, ok, slow
from tools.origin.server import Origin

CRASH_RECOVERY_S = 40.0


async def test_sigterm_finishes_short_fetches_hands_back_long_ones_and_exits_0(
    redis_url: str, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next worker finishes the long fetch: one interruption, no attempt charged."""
    monkeypatch.setenv("FETCHFLEET_GRACE_S", "1")
    async with (
        Origin.serving("127.0.0.151", latency(0.3, ok(b"short"))) as short,
        Origin.serving("127.0.0.152", slow(b"long", 0.1, 40)) as long,
    ):
        with workers(1, redis_url, tmp_path / "first") as first:
            batch = await fleet.submit([short.url("/s"), long.url("/l")])
            await wait_until(lambda: short.in_progress and long.in_progress, "both requests")
            first.processes[0].send_signal(signal.SIGTERM)
            first.processes[0].send_signal(signal.SIGTERM)
            await wait_until(lambda: first.processes[0].poll() is not None, "the worker's end", 20)
            ended_with = first.processes[0].returncode
        counts = await batch.counts()
        with workers(1, redis_url, tmp_path / "second"):
            results = {result.url: result async for result in batch.results()}

    assert 0 == ended_with
    assert 1 == counts.stored
    assert {Outcome.STORED} == {result.outcome for result in results.values()}
    assert (1, 1) == (results[long.url("/l")].attempts, results[long.url("/l")].interruptions)
    assert 0 == results[short.url("/s")].interruptions


async def test_another_worker_reclaims_the_lanes_of_a_killed_one(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """Claimed fetches are repeated and count an interruption, not an attempt."""
    async with Origin.serving("127.0.0.153", slow(b"drop", 0.05, 10)) as origin:
        with workers(1, redis_url, tmp_path / "first") as first:
            batch = await fleet.submit([origin.url(f"/{i}") for i in range(20)])
            await wait_until(lambda: origin.in_progress >= 8, "eight requests")
            first.processes[0].kill()
            await wait_until(lambda: first.processes[0].poll() is not None, "the worker's death")
        with workers(1, redis_url, tmp_path / "second") as second:
            await wait_until(lambda: second.events("lane.rescued"), "the rescue", CRASH_RECOVERY_S)
            results = [result async for result in batch.results()]
            loops = {line["loop"] for line in second.events("worker.started")}
        high_water = origin.high_water

    assert 20 == len({result.id for result in results})
    assert {Outcome.STORED} == {result.outcome for result in results}
    assert sum(result.interruptions for result in results) >= 1
    assert {1} == {result.attempts for result in results}
    assert high_water <= 8
    assert {"uvloop"} == loops


def without_input() -> None:
    """Close standard input, as a service manager may. For preexec_fn."""
    die_with_parent()
    os.close(0)


@contextmanager
def arq_worker(redis_url: str, out: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `arq` with WorkerSettings, settings from the environment, and standard input closed."""
    environment = {
        "FETCHFLEET_REDIS_URL": redis_url,
        "FETCHFLEET_OUT": str(out),
        "FETCHFLEET_ALLOW_NET": "127.0.0.0/8",
    }
    with (out.parent / "arq.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "arq", "fetchfleet.worker.main.WorkerSettings"],
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
            preexec_fn=without_input,  # noqa: PLW1509 no threads hold locks here
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_arqs_command_runs_a_worker_and_sigterm_ends_it_with_0(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """It runs on uvloop and reports its health as other workers do."""
    async with Origin.serving("127.0.0.154", ok(b"by arq")) as origin:
        with arq_worker(redis_url, tmp_path / "bodies") as process:
            batch = await fleet.submit([origin.url(f"/{i}") for i in range(20)])
            results = [result async for result in batch.results()]
            reports = [at.reply for at in await asyncio.to_thread(ask_workers, None) if at.pid == process.pid]
            process.send_signal(signal.SIGTERM)
            await wait_until(lambda: process.poll() is not None, "arq's end", 20)
            ended_with = process.returncode

    assert [Outcome.STORED] * 20 == [result.outcome for result in results]
    assert 0 == ended_with
    assert [[]] == [health.not_ready for health in reports if health]
    assert b"worker.stopped" in (tmp_path / "arq.log").read_bytes()
    assert b'"loop":"uvloop"' in (tmp_path / "arq.log").read_bytes()


async def test_a_worker_with_closed_standard_streams_works_and_exits_0(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """No socket gets the descriptors 0 to 2: libuv would abort."""
    worker = [sys.executable, "-m", "fetchfleet.worker", "worker", "--allow-net", "127.0.0.0/8"]
    command = [*worker, "--redis", redis_url, "--out", str(tmp_path)]
    async with Origin.serving("127.0.0.155", ok(b"quietly")) as origin:
        process = subprocess.Popen(  # noqa: ASYNC220 it only starts it
            ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command],
            preexec_fn=die_with_parent,  # noqa: PLW1509 no threads hold locks here
        )
        try:
            batch = await fleet.submit([origin.url()])
            [result] = [result async for result in batch.results()]
            process.send_signal(signal.SIGTERM)
            await wait_until(lambda: process.poll() is not None, "the worker's end", 20)
        finally:
            process.kill()
            process.wait()

    assert (Outcome.STORED, 0) == (result.outcome, process.returncode)


async def test_liveness_passes_in_a_redis_outage_and_fails_for_a_frozen_process(tmp_path: Path) -> None:
    """An outage must restart no worker. Readiness fails during it."""
    name = f"live-{os.getpid()}"

    async def health(how: str) -> tuple[int, str]:
        environment = {"FETCHFLEET_WORKER_ID": name, "FETCHFLEET_REDIS_URL": "redis://127.0.0.1:1"}
        output = await asyncio.to_thread(fetchfleet, "health", how, **environment)
        return output.returncode, output.stderr

    async def is_ready() -> bool:
        return (await health("--ready"))[0] == 0

    with own_redis() as server:
        await wait_until(server.responds, "Redis")
        with named_workers(server.url, tmp_path / "fleet", QUICK_POLICY) as hands:
            worker = hands.start(name)
            await wait_until(is_ready, "the worker", every_s=0.2)
            server.shut_down()
            live = await health("--live")
            worker.send(signal.SIGSTOP)
            frozen = await health("--live")
            worker.send(signal.SIGCONT)
            thawed = await health("--live")
            unready = await wait_until(lambda: failing(health("--ready")), "the outage to show", every_s=0.2)
            worker.kill()
            dead = await health("--live")

    assert [(0, ""), (0, "")] == [live, thawed]
    assert (1, f"process {worker.process.pid} does not answer: its event loop is blocked\n") == frozen
    assert (1, f"{name} has no answer from Redis\n") == unready
    assert (1, "no worker of this user runs on this machine (or in this container)\n") == dead


async def failing(ended: Awaitable[tuple[int, str]]) -> tuple[int, str] | None:
    """Return the exit code and output of a command that fails, else None."""
    code, output = await ended
    return (code, output) if code else None
