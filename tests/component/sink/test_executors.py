"""Executors: blocked threads of one kind delay no work of another kind."""

import asyncio
import gzip
import json
import os
import threading
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest

from fetchfleet import Fetch, Outcome
from fetchfleet.worker.http.http1.connection import MAX_UNREAD_BYTES
from fetchfleet.worker.sink.files.out_folder import OutFolder
from fetchfleet.worker.util.executors import HASHING, SENDING
from tests.component.conftest import Start
from tools.origin import behaviours as o
from tools.origin.server import Exchange, Header, Origin

RECORD = json.dumps({"record": "x" * 40}).encode() + b"\n"
LINES = RECORD * 5000
GZIPPED: list[Header] = [("Content-Encoding", "gzip")]
LEAST_BYTES, MOST_BYTES = 256 * 1024, 1024 * 1024


async def answer(x: Exchange) -> None:
    """Respond with lines, gzipped if the path begins with /packed."""
    packed = x.request.target.startswith("/packed")
    # Level 0 keeps the packed body as large as the plain one.
    await x.respond(200, GZIPPED if packed else [], gzip.compress(LINES, 0) if packed else LINES)


@pytest.mark.parametrize("kind", ["default", "hashing", "sending", "blocks"])
async def test_decoding_and_line_checks_wait_for_no_other_executor(
    origin: Origin, start: Start, tmp_path: Path, kind: str
) -> None:
    """Hashing or sending files on a stalled disk, or stuck DNS lookups, fill the other executor."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_bytes(LINES)
    worker = await start(in_folder=tmp_path / "in")
    origin.behaviour = answer
    disk = worker.runtime.services.sink.disk
    assert isinstance(disk, OutFolder)
    threads: Executor | None = {"hashing": HASHING, "sending": SENDING, "blocks": disk.for_blocks}.get(kind)
    go_on, loop = threading.Event(), asyncio.get_running_loop()
    stuck = [loop.run_in_executor(threads, go_on.wait, 60) for _ in range(50)]
    fetches = [
        Fetch(url=origin.url("/packed/1"), decode=True),
        Fetch(url=origin.url("/2"), lines=True),
        Fetch(url=origin.url("/packed/3"), decode=True, lines=True),
    ]
    if kind != "sending":
        fetches.append(Fetch(url=origin.url("/4"), method="PUT", body_file="file"))
    try:
        async with asyncio.timeout(30):
            results = await worker.results(fetches)
    finally:
        go_on.set()
        await asyncio.wait(stuck)

    assert [result.outcome for result in results] == [Outcome.STORED] * len(fetches)
    assert {worker.body(result) for result in results} == {LINES}


@pytest.mark.parametrize("name", ["plain", "small chunks", "decoded"])
async def test_large_bodies_are_written_in_large_pieces(
    origin: Origin, start: Start, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Pieces have 256 KiB to 1 MiB for any size of chunks. Only the last one may be smaller."""
    body = os.urandom(1000) * 6000
    sizes: list[int] = []
    writev = os.writev

    def noted(file: int, blocks: list[bytes]) -> int:
        sizes.append(sum(map(len, blocks)))
        return writev(file, blocks)

    worker = await start()
    monkeypatch.setattr(os, "writev", noted)
    pieces = [body[at : at + 10_000] for at in range(0, len(body), 10_000)]
    answers: dict[str, Any] = {
        "plain": o.ok(body),
        "small chunks": o.chunked(pieces),
        "decoded": o.ok(gzip.compress(body, 1), GZIPPED),
    }
    origin.behaviour = answers[name]

    result = await worker.one(origin.url(), decode=name == "decoded")

    assert worker.body(result) == body
    *full, last = sizes
    assert all(LEAST_BYTES <= size <= MOST_BYTES for size in full)
    assert last <= MOST_BYTES
    assert len(full) >= len(body) // (LEAST_BYTES * 2 + 2 * MAX_UNREAD_BYTES) - 1
