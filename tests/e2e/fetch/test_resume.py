"""Resuming a large body after its worker process ended in the middle."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from fetchfleet import Fetch, Fleet, Outcome
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import PartialNote, parse_entry
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.lanes.parameters import LaneParameters
from tests.support.named_workers import NamedWorkers, named_workers, results_of, worker_of
from tests.support.range_server import RangedBody, body_of, range_of, span_of
from tests.support.waiting import wait_until
from tools.origin.server import Exchange, Origin

HOST = "127.0.0.161"
CHECKPOINT_BYTES = LaneParameters().checkpoint_bytes
STOPS_AT = CHECKPOINT_BYTES + (4 << 20)
SIZE = STOPS_AT + (4 << 20)
BEFORE_S = 60.0


class Large:
    """A body that stalls once, past the first checkpoint, and is served by ranges afterwards."""

    def __init__(self) -> None:
        self.body = body_of(1 << 20) * (SIZE >> 20)
        self.sha256 = hashlib.sha256(self.body).hexdigest()
        self.served = RangedBody(self.body)
        self._halted = False

    async def __call__(self, x: Exchange) -> None:
        """Send one response."""
        if self._halted:
            await self.served(x)
            return
        self._halted = True
        await x.send_head(200, [("ETag", '"one"'), ("Content-Length", str(SIZE))])
        for at in range(0, STOPS_AT, 1 << 20):
            await x.send(self.body[at : at + (1 << 20)])
        await asyncio.Event().wait()


async def noted(redis_url: str) -> PartialNote:
    """Return the note of the only claimed fetch, once it has one."""
    redis: Any = connect(redis_url)

    async def note() -> PartialNote | None:
        elements = await redis.hvals(keys.claimed(HOST))
        return parse_entry(elements[0]).part if elements else None

    try:
        found = await wait_until(note, "a checkpoint", BEFORE_S)
    finally:
        await redis.aclose()
        await redis.connection_pool.aclose()
    assert found is not None
    return found


def parts_of(workers: NamedWorkers) -> int:
    """Return the size of the partial files on the workers' disk, in bytes."""
    return sum((workers.out / name).stat().st_size for name in workers.parts())


@pytest.mark.parametrize("same_disk", [True, False], ids=["same-disk", "another-disk"])
async def test_after_kill_9_a_body_resumes_at_its_checkpoint(
    redis_url: str,
    fleet: Fleet,
    tmp_path: Path,
    same_disk: bool,  # noqa: FBT001
) -> None:
    """A worker with another disk has no partial file and starts from 0."""
    large = Large()
    second = tmp_path / ("fleet" if same_disk else "elsewhere")
    async with Origin.serving(HOST, large) as origin:
        with (
            named_workers(redis_url, tmp_path / "fleet", FETCHFLEET_LEASE_S="3") as workers,
            named_workers(redis_url, second, FETCHFLEET_LEASE_S="3") as others,
        ):
            await workers.start_all("one")
            batch = await fleet.submit([origin.url()])
            note = await noted(redis_url)
            workers.members["one"].kill()
            await others.start_all("two")
            [result] = (await results_of(fleet, batch.id)).values()
            stored = hashlib.sha256((others.out / str(result.path)).read_bytes()).hexdigest()
            left = others.parts()
        asked = [(worker_of(seen), range_of(seen)) for seen in origin.requests]

    assert CHECKPOINT_BYTES <= note.offset_bytes <= STOPS_AT
    assert [("one", None), ("two", f"bytes={note.offset_bytes}-" if same_disk else None)] == asked
    assert [SIZE - note.offset_bytes if same_disk else SIZE] == large.served.sent_bytes
    assert (Outcome.STORED, SIZE, large.sha256) == (result.outcome, result.bytes, result.sha256)
    assert large.sha256 == stored
    assert (1, 1) == (result.attempts, result.interruptions)
    assert set() == left


async def test_after_kill_9_a_body_in_segments_resumes_at_its_checkpoint(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """The next attempt is split too. It requests each byte after the checkpoint once."""
    large, killed = Large(), asyncio.Event()

    async def stalls_near_the_end(x: Exchange) -> None:
        if span_of(x.request)[1] > STOPS_AT:
            await killed.wait()
        await large.served(x)

    async with Origin.serving(HOST, stalls_near_the_end) as origin:
        with named_workers(redis_url, tmp_path / "fleet", FETCHFLEET_LEASE_S="3") as workers:
            await workers.start_all("one")
            batch = await fleet.submit([Fetch(url=origin.url(), segments=4)])
            note = await noted(redis_url)
            workers.members["one"].kill()
            killed.set()
            await workers.start_all("two")
            [result] = (await results_of(fleet, batch.id)).values()
            stored = hashlib.sha256((workers.out / str(result.path)).read_bytes()).hexdigest()
            left = workers.parts()
        again = sorted(span_of(seen) for seen in origin.requests if worker_of(seen) == "two")

    assert CHECKPOINT_BYTES <= note.offset_bytes <= STOPS_AT
    assert (note.offset_bytes, SIZE) == (again[0][0], again[-1][1])
    assert len(again) > 1
    assert [end for _, end in again[:-1]] == [first for first, _ in again[1:]]
    assert (Outcome.STORED, SIZE, large.sha256) == (result.outcome, result.bytes, result.sha256)
    assert large.sha256 == stored
    assert (1, 1) == (result.attempts, result.interruptions)
    assert set() == left


async def test_after_sigterm_a_body_resumes_where_it_stopped(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """The stop counts as an interruption and costs no attempt."""
    large = Large()
    async with Origin.serving(HOST, large) as origin:
        with named_workers(redis_url, tmp_path / "fleet", FETCHFLEET_GRACE_S="0.2") as workers:
            [one] = await workers.start_all("one")
            batch = await fleet.submit([origin.url()])
            # All but the block that is still in memory.
            await wait_until(lambda: parts_of(workers) > STOPS_AT - (1 << 20), "most of the body", BEFORE_S)
            ended_with = await one.terminated()
            kept_bytes = parts_of(workers)
            await workers.start_all("two")
            [result] = (await results_of(fleet, batch.id)).values()
            left = workers.parts()
        asked = [(worker_of(seen), range_of(seen)) for seen in origin.requests]

    assert 0 == ended_with
    assert STOPS_AT - (1 << 20) < kept_bytes <= STOPS_AT
    assert [("one", None), ("two", f"bytes={kept_bytes}-")] == asked
    assert [SIZE - kept_bytes] == large.served.sent_bytes
    assert (Outcome.STORED, large.sha256) == (result.outcome, result.sha256)
    assert (1, 1) == (result.attempts, result.interruptions)
    assert set() == left
