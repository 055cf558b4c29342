"""Worker processes and producers without the package: redis-cli, Node.js and plain arq."""

import asyncio
import json
import pickle
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet import Fleet, Outcome
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.result import Result, decode_result
from tests.support.lanes import ask, now_ms
from tests.support.plain_arq import QUEUE, enqueue, job_outcome, plain_arq
from tests.support.redis import cli_arguments
from tests.support.waiting import wait_until
from tests.support.workers import workers
from tools.origin.behaviours import latency, ok
from tools.origin.server import Origin

SUPPORT = Path(__file__).parents[2] / "support"
BATCH = "0123456789abcdef"
TAKEOVER_S = 40.0


def program(name: str) -> str:
    """Return the path of a program; skip the test if it is not installed."""
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


async def output_of(*command: str) -> str:
    """Run a program in a thread, so that the loop can serve the origins; return its output."""
    ended = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, timeout=60
    )
    assert 0 == ended.returncode, ended.stderr
    return ended.stdout


async def results(redis: Redis, count: int) -> list[Result]:
    """Wait for this many results; return the results of all batches."""
    await wait_until(lambda: _has_results(redis, count), f"{count} results", 60)
    return [decode_result(row[b"r"]) for _, row in await ask(redis, "XRANGE", keys.ALL_RESULTS, "-", "+")]


async def _has_results(redis: Redis, count: int) -> bool:
    return int(await redis.xlen(keys.ALL_RESULTS)) >= count


async def dead(redis: Redis) -> list[tuple[str, str]]:
    """Return the ingress path and the note of each dead letter."""
    rows = await ask(redis, "XRANGE", keys.DEAD, "-", "+")
    return [(row[b"door"].decode(), row[b"note"].decode()) for _, row in rows]


async def test_redis_cli_is_a_producer(redis_url: str, redis: Redis, tmp_path: Path) -> None:
    """A URL, one fetch and a batch are pushed and stored. An invalid message becomes a dead letter."""
    cli = (program("redis-cli"), *cli_arguments(redis_url))
    async with Origin.serving("127.0.0.191", ok(b"body")) as origin:
        one = json.dumps({"url": origin.url("/b"), "dest": "b.bin"})
        many = json.dumps({"batch": BATCH, "fetches": [origin.url("/c"), {"url": origin.url("/d")}]})
        pushed = await output_of(*cli, "RPUSH", "ff:inbox", origin.url("/a"), one, many, "nonsense")
        with workers(1, redis_url, tmp_path) as fleet:
            ended = await results(redis, 4)
            body = (fleet.out / "b.bin").read_bytes()
        counted = await output_of(*cli, "HGET", f"ff:batch:{BATCH}", "stored")

    assert ("4", "2") == (pushed.strip(), counted.strip())
    assert {"/a", "/b", "/c", "/d"} == {"/" + result.url.rpartition("/")[2] for result in ended}
    assert {Outcome.STORED} == {result.outcome for result in ended}
    assert b"body" == body
    assert [("inbox", "url")] == [(door, note.split(":")[0]) for door, note in await dead(redis)]


async def test_node_without_packages_pushes_fetches_and_reads_results(redis_url: str, tmp_path: Path) -> None:
    """The client is sixty lines with a socket."""
    node = program("node")
    async with Origin.serving("127.0.0.192", ok(b"body")) as origin:
        one = json.dumps({"url": origin.url("/b"), "meta": {"name": "é"}})
        with workers(1, redis_url, tmp_path):
            outcomes = await output_of(node, str(SUPPORT / "inbox.mjs"), redis_url, origin.url("/a"), one)
    by_url = {result["url"]: result for result in map(json.loads, outcomes.splitlines())}

    assert {origin.url("/a"), origin.url("/b")} == set(by_url)
    assert {"stored"} == {result["outcome"] for result in by_url.values()}
    assert {"name": "é"} == by_url[origin.url("/b")]["meta"]


async def test_plain_arq_is_a_producer_and_gets_a_receipt(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """A job is one fetch, or a list with its own batch ID. The receipt has the IDs of the results."""
    async with Origin.serving("127.0.0.193", ok(b"body")) as origin, plain_arq(redis_url) as pool:
        with workers(1, redis_url, tmp_path):
            calls: list[tuple[Any, dict[str, str]]] = [
                (origin.url("/a"), {}),
                ({"url": origin.url("/b")}, {}),
                ([origin.url("/c"), {"url": origin.url("/d"), "dest": "d"}], {"batch": BATCH}),
                ([origin.url("/c"), {"url": origin.url("/d"), "dest": "d"}], {"batch": BATCH}),
            ]
            jobs = [await enqueue(pool, "fetch", what, **how) for what, how in calls]
            outcomes = [await job_outcome(pool, job) for job in jobs]
            ended = [
                [result async for result in fleet.batch(receipt["batch"]).results()]
                for _, receipt in outcomes
            ]

    assert [True] * 4 == [well for well, _ in outcomes]
    assert [sorted(receipt["ids"]) for _, receipt in outcomes] == [
        sorted(one.id for one in some) for some in ended
    ]
    assert {Outcome.STORED} == {one.outcome for some in ended for one in some}
    assert outcomes[2] == outcomes[3]
    assert (BATCH, 2) == (outcomes[2][1]["batch"], len(ended[2]))


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._path,))


async def test_plain_arq_gets_the_reason_for_a_refused_job(
    redis_url: str, redis: Redis, tmp_path: Path
) -> None:
    """The job's result and a dead letter have the reason, and a pickle is never loaded."""
    async with (
        plain_arq(redis_url) as pool,
        plain_arq(redis_url, job_serializer=pickle.dumps) as pickling,
        plain_arq(redis_url, job_serializer=lambda _: b"[" * 100_000) as nesting,
    ):
        jobs = [
            await enqueue(pool, "fetch", ["http://a.example/", {"url": "ftp://a/"}]),
            await enqueue(pool, "download", "http://a.example/"),
            await enqueue(pool, "fetch"),
            await enqueue(pool, "fetch", "http://a.example/", ctx="x"),
            await enqueue(pickling, "fetch", Trap(tmp_path / "loaded")),
            await enqueue(nesting, "fetch"),
        ]
        with workers(1, redis_url, tmp_path / "fleet"):
            outcomes = [await job_outcome(pool, job) for job in jobs]

    assert [False] * 6 == [well for well, _ in outcomes]
    wanted = ["item 1: url: ", "unknown function 'download'", "call fetch(fetches)", "call fetch(fetches)"]
    assert wanted == [text[: len(want)] for (_, text), want in zip(outcomes[:4], wanted, strict=True)]
    assert all("pickles are never loaded" in text for _, text in outcomes[4:])
    assert sorted(text for _, text in outcomes) == sorted(note for _, note in await dead(redis))
    assert not (tmp_path / "loaded").exists()


async def test_a_job_that_arq_runs_again_is_enqueued_once(
    redis_url: str, redis: Redis, fleet: Fleet, tmp_path: Path
) -> None:
    """The test deletes the job's result, as if the worker died between enqueuing and storing it."""
    async with Origin.serving("127.0.0.194", ok(b"body")) as origin, plain_arq(redis_url) as pool:
        job = await enqueue(pool, "fetch", [origin.url(f"/{i}") for i in range(5)])
        as_it_was = await redis.get(f"arq:job:{job.job_id}")
        with workers(1, redis_url, tmp_path):
            first = await job_outcome(pool, job)
            await redis.delete(f"arq:result:{job.job_id}")
            await redis.set(f"arq:job:{job.job_id}", as_it_was, ex=60)
            await redis.zadd(QUEUE, {job.job_id: 1})
            again = await job_outcome(pool, job)
            counts = await fleet.batch(first[1]["batch"]).wait()
        requests = len(origin.requests)

    assert first == again
    assert (5, 5, 5) == (counts.total, counts.stored, requests)


async def test_a_stopped_worker_releases_the_inbox(redis_url: str, redis: Redis, tmp_path: Path) -> None:
    """The next worker does not wait for the end of its lease."""

    async def held() -> bool:
        return float(await ask(redis, "HGET", keys.INTAKE, "until_ms") or 0) > await now_ms(redis)

    with workers(1, redis_url, tmp_path) as first:
        await wait_until(held, "an owner of the inbox")
        first.processes[0].send_signal(signal.SIGTERM)
        await wait_until(lambda: first.processes[0].poll() is not None, "the worker's end", 20)
        left_held = await held()

    assert not left_held


async def test_another_worker_reads_the_inbox_after_a_kill(
    redis_url: str, redis: Redis, tmp_path: Path
) -> None:
    """SIGKILL arrives in the middle of a flood. Each message has one result."""
    async with Origin.serving("127.0.0.195", latency(0.01, ok(b"x"))) as origin:
        with workers(2, redis_url, tmp_path) as fleet:
            await wait_until(lambda: ask(redis, "HGET", keys.INTAKE, "token"), "an owner of the inbox")
            for start in range(0, 1500, 50):
                await ask(redis, "RPUSH", keys.INBOX, *(origin.url(f"/{start + i}") for i in range(50)))
                if start == 500:
                    holder = (await ask(redis, "HGET", keys.INTAKE, "token")).split()[0].decode()
                    fleet.processes[int(holder.rpartition("-")[2]) - 1].kill()
            await wait_until(lambda: _has_results(redis, 1500), "the results", TAKEOVER_S)
            ended = await results(redis, 1500)

    assert 1500 == len(ended)
    assert {origin.url(f"/{i}") for i in range(1500)} == {result.url for result in ended}
