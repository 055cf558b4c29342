"""Memory of a worker process with many large bodies in flight."""

import asyncio
import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import brotli
import pytest

from fetchfleet import Fetch, Fleet, Outcome
from fetchfleet.worker.policy.model import LanePolicy
from tests.support.range_server import body_of
from tests.support.waiting import wait_until
from tests.support.workers import QUICK_POLICY, peak_memory_bytes, workers
from tools.origin.server import Behaviour, Exchange, Header, Origin
from tools.origin.static_server import serve_folder

AT_ONCE = 8
MANY = 64
BODY_BYTES = 64 << 20
MIB = 1 << 20
RECORD_BYTES = MIB - 100


async def test_concurrent_large_bodies_stay_within_the_memory_bound(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """The bound is 100 MiB, and 2 MiB for each fetch in flight. Half a gigabyte is fetched."""
    served = tmp_path / "served"
    served.mkdir()
    with (served / "large").open("wb") as file:
        file.truncate(BODY_BYTES)
    with (
        serve_folder(served, ["127.0.0.111"]) as server,
        workers(1, redis_url, tmp_path / "fleet") as running,
    ):
        await wait_until(running.started, "the worker to start")
        batch = await fleet.submit([f"{server.base_urls[0]}/large?{n}" for n in range(AT_ONCE)])
        results = [result async for result in batch.results()]
        most_bytes = peak_memory_bytes(running.processes[0].pid)
        sizes = {(running.out / str(result.path)).stat().st_size for result in results}
        shutil.rmtree(running.out)

    assert [Outcome.STORED] * AT_ONCE == [result.outcome for result in results]
    assert {BODY_BYTES} == sizes
    assert most_bytes <= (100 + 2 * AT_ONCE) * MIB


class CheckedBodies(NamedTuple):
    """Bodies that are decoded or line-checked. coded: returns headers and bytes for the offered codings."""

    at_once: int
    fields: dict[str, Any]
    coded: Callable[[str], tuple[list[Header], bytes]]


def packed(body: bytes) -> Callable[[str], tuple[list[Header], bytes]]:
    """Return br with the largest window if it is offered, else gzip."""
    br = brotli.compress(body, quality=2, lgwin=24)
    gzipped = gzip.compress(body, 1)
    return lambda offered: (
        ([("Content-Encoding", "br")], br) if "br" in offered else ([("Content-Encoding", "gzip")], gzipped)
    )


def lines_of(size_bytes: int) -> bytes:
    """Return lines of nearly the maximum length."""
    record = b'"' + body_of(RECORD_BYTES // 2).hex().encode() + b'"\n'
    return record * (size_bytes // len(record))


CASES: dict[str, Callable[[], CheckedBodies]] = {
    "decode": lambda: CheckedBodies(AT_ONCE, {"decode": True}, packed(body_of(20 * MIB))),
    "many": lambda: CheckedBodies(MANY, {"decode": True}, packed(body_of(4 * MIB))),
    "lines": lambda: CheckedBodies(AT_ONCE, {"lines": True}, lambda _: ([], lines_of(20 * MIB))),
    "many, decoded lines": lambda: CheckedBodies(
        MANY, {"decode": True, "lines": True}, packed(lines_of(5 * MIB))
    ),
}


@pytest.mark.parametrize("name", CASES)
async def test_decoded_and_checked_bodies_stay_within_the_memory_bound(
    redis_url: str, fleet: Fleet, tmp_path: Path, name: str
) -> None:
    """Large decoder windows are few. Each body with `lines` may add one line of maximum length."""
    at_once, fields, coded = CASES[name]()
    all_there = asyncio.Barrier(at_once)
    policy = f"{QUICK_POLICY}concurrency = {at_once}\n"
    async with Origin.serving("127.0.0.112", in_step(coded, all_there)) as origin:
        with workers(1, redis_url, tmp_path / "fleet", policy) as running:
            await wait_until(running.started, "the worker to start")
            batch = await fleet.submit([Fetch(url=origin.url(f"/{n}"), **fields) for n in range(at_once)])
            results = [result async for result in batch.results()]
            most_bytes = peak_memory_bytes(running.processes[0].pid)
            shutil.rmtree(running.out)

    assert [(result.outcome, result.attempts) for result in results] == [(Outcome.STORED, 1)] * at_once
    share_bytes = 2 * MIB + (LanePolicy().max_line_bytes if "lines" in fields else 0)
    assert most_bytes <= 100 * MIB + share_bytes * at_once


def in_step(coded: Callable[[str], tuple[list[Header], bytes]], all_there: asyncio.Barrier) -> Behaviour:
    """Send nine tenths of each body, and the rest once all bodies are that far."""

    async def answer(x: Exchange) -> None:
        headers, body = coded(Origin.header(x.request, "Accept-Encoding") or "")
        await x.send_head(200, [*headers, ("Content-Length", str(len(body)))])
        most = len(body) * 9 // 10
        for at in range(0, most, MIB):
            await x.send(body[at : min(at + MIB, most)])
        await all_there.wait()
        await x.send(body[most:])

    return answer
