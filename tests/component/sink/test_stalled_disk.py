"""Hosts that send without end to a worker with a stalled disk: back-pressure bounds its memory."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fetchfleet import Outcome, Reason
from tests.component.conftest import Start
from tests.support.waiting import wait_until
from tools.one_worker import results_of
from tools.origin import behaviours as o
from tools.origin.server import Exchange, Origin

MAX_BYTES = 3 << 20
MOST_IN_MEMORY_BYTES = 1536 * 1024
"""Of one body: a block that is being written, a full one, and the piece that filled it."""

SMALL = 8
ENDLESS = ("/chunks", "/tiny", "/unframed")
WHOLE = o.big(MAX_BYTES)


async def chunks(x: Exchange) -> None:
    """Send chunks of 64 KiB without end."""
    await x.send_head(200, [("Transfer-Encoding", "chunked")])
    while True:
        await x.send(b"10000\r\n%b\r\n" % bytes(1 << 16))


async def tiny(x: Exchange) -> None:
    """Send tiny chunks without end."""
    await x.send_head(200, [("Transfer-Encoding", "chunked")])
    while True:
        await x.send(b"20\r\n%b\r\n" % bytes(32) * 512)


async def unframed(x: Exchange) -> None:
    """Send a body without end and without a length."""
    await x.send_head(200, [("Connection", "close")])
    while True:
        await x.send(bytes(1 << 16))


class StalledDisk:
    """Every writev(2) waits until `go_on` is set."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.waiting = 0
        self._writev = os.writev

    def __call__(self, file: int, blocks: Any) -> int:
        """Block if the name is one of the stuck, then name the file."""
        self.waiting += 1
        self.go_on.wait(30)
        return self._writev(file, blocks)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[StalledDisk]:
    """Yield a disk that stalls until the end of the test."""
    made = StalledDisk()
    monkeypatch.setattr(os, "writev", made)
    yield made
    made.go_on.set()


async def test_endless_bodies_fill_two_blocks_each_while_the_disk_is_stalled(
    start: Start, origin: Origin, other: Origin, disk: StalledDisk
) -> None:
    """Fetches that store no body end meanwhile. The others end as usual once the disk continues."""
    origin.behaviour = o.by_path({"/chunks": chunks, "/tiny": tiny, "/unframed": unframed, "/whole": WHOLE})
    other.behaviour = o.by_path({"/small": o.ok(bytes(10_000))})
    worker = await start(policy={"max_bytes": MAX_BYTES, "concurrency": SMALL, "attempts": 1})
    large = await worker.submit([origin.url(path) for path in (*ENDLESS, "/whole")])
    received = worker.runtime.services.sink.disk
    await wait_until(lambda: disk.waiting >= len(ENDLESS) + 1, "a block of each body to be at the disk")
    small = await worker.submit([other.url(f"/small/{number}") for number in range(SMALL)])
    await wait_until(lambda: len(other.requests) == SMALL, "the small bodies to be requested")

    missing = await worker.results([origin.url(f"/missing/{number}") for number in range(40)])

    assert {result.status for result in missing} == {404}
    most_bytes = (len(ENDLESS) + 1) * MOST_IN_MEMORY_BYTES + SMALL * 10_000
    assert received.received_bytes <= most_bytes
    disk.go_on.set()
    results = {result.url.removeprefix(origin.url("")): result for result in await results_of(large)}
    assert {results[path].reason for path in ENDLESS} == {Reason.TOO_LARGE}
    assert (results["/whole"].outcome, results["/whole"].sha256) == (Outcome.STORED, WHOLE.sha256)
    assert [result.bytes for result in await results_of(small)] == [10_000] * SMALL
    assert not worker.parts()
