"""The two blocks of a body between network and disk: their bounds, and the threads that write them."""

import asyncio
import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from fetchfleet import Fetch
from fetchfleet.jobs.contract.entry import Entry, PartialNote
from fetchfleet.worker.sink.base import Expected
from fetchfleet.worker.sink.files import partial_file
from fetchfleet.worker.sink.files.buffered_body import BLOCK_BYTES
from fetchfleet.worker.sink.files.out_folder import THREADS
from fetchfleet.worker.sink.files.sink import FileSink
from tests.support.disks import (
    ID,
    disable_unnamed_files,
    files,
    mounted,
    opened,
    some_bytes,
    store_body,
    write_piece,
)
from tests.support.waiting import wait_until

BLOCK = b"x" * BLOCK_BYTES
ENTRY = Entry(id=ID, deadline_ms=0, fetch=Fetch(url="http://x/"))


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[FileSink]:
    """A sink on an empty folder."""
    with opened(tmp_path / "out") as made:
        yield made


async def test_a_second_block_fills_while_the_first_is_written(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer waits when both blocks are full."""
    may_end, written, writev = threading.Event(), [], os.writev

    def slowly(file: int, blocks: list[bytes]) -> int:
        may_end.wait(30)
        written.append(b"".join(blocks))
        return writev(file, blocks)

    monkeypatch.setattr(os, "writev", slowly)
    async with aclosing(sink.writer(ENTRY, 1, Expected())) as writer:
        await write_piece(writer, BLOCK)
        await write_piece(writer, b"the next")
        third = asyncio.create_task(write_piece(writer, BLOCK))
        await asyncio.wait([third], timeout=0.02)
        waited = not third.done()
        may_end.set()
        await third
        await write_piece(writer, b"rest")
        stored = await writer.commit(lambda: True)

    assert waited
    assert written == [BLOCK, b"the next" + BLOCK, b"rest"]
    assert stored is not None
    assert (sink.disk.path / stored.path).read_bytes() == BLOCK + b"the next" + BLOCK + b"rest"


async def test_a_block_is_reused_only_after_it_is_written(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two blocks are enough for a body of any size. Unwritten bytes are not overwritten."""
    may_write, writev, body = threading.Event(), os.writev, [bytes([at]) * 1000 for at in range(250)] * 8

    def slowly(file: int, blocks: list[bytes]) -> int:
        may_write.wait(30)
        return writev(file, blocks)

    async with aclosing(sink.writer(ENTRY, 1, Expected())) as writer:
        assert writer.receive_buffer() is None
        await write_piece(writer, BLOCK)
        monkeypatch.setattr(os, "writev", slowly)
        blocks: set[int] = set()
        for at, piece in enumerate(body):
            if writer.full:
                draining = asyncio.create_task(writer.drain())
                await asyncio.sleep(0)
                may_write.set()
                await draining
                may_write.clear()
            buffer = writer.receive_buffer()
            assert buffer is not None
            blocks.add(id(buffer.obj))
            buffer[: len(piece)] = piece
            writer.write(buffer[: len(piece)] if at % 3 else piece)
        may_write.set()
        stored = await writer.commit(lambda: True)

    assert len(blocks) == 2
    assert stored is not None
    assert (sink.disk.path / stored.path).read_bytes() == BLOCK + b"".join(body)
    assert stored.sha256 == hashlib.sha256(BLOCK + b"".join(body)).hexdigest()


async def test_a_write_error_is_raised_at_the_next_block(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No further block goes to the disk after an error."""
    asked = []

    def full(file: int, _: list[bytes]) -> int:
        asked.append(file)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "writev", full)
    async with aclosing(sink.writer(ENTRY, 1, Expected())) as writer:
        await write_piece(writer, BLOCK)
        for more in (write_piece(writer, BLOCK), writer.commit(lambda: True)):
            with pytest.raises(OSError, match="full"):
                await more

    assert len(asked) == 1
    assert files(sink.disk.path) == set()


async def test_tiny_pieces_are_joined(sink: FileSink) -> None:
    """Each object costs many times the memory of its few bytes."""
    pieces = [some_bytes(size) for size in (*[1] * 5000, 5000, *[7] * 100, 4096, 1)]
    async with aclosing(sink.writer(ENTRY, 1, Expected())) as writer:
        for piece in pieces:
            await write_piece(writer, piece)
        in_memory = len(writer._pieces)
        stored = await writer.commit(lambda: True)

    assert in_memory == 5
    assert stored is not None
    assert (sink.disk.path / stored.path).read_bytes() == b"".join(pieces)


async def test_stuck_large_bodies_delay_no_small_body(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every thread for large bodies is at a stalled disk. Small bodies have threads of their own."""
    stuck, go_on = [], threading.Event()
    create = sink.disk.directory.create

    def slowly(part: str) -> int:
        if threading.current_thread().name.startswith("blocks"):
            stuck.append(part)
            go_on.wait(30)
        return create(part)

    monkeypatch.setattr(sink.disk.directory, "create", slowly)

    async def large(number: int) -> Any:
        return await store_body(sink, BLOCK * 2, f"large/{number}", place=number)

    running = [asyncio.create_task(large(number)) for number in range(THREADS + 2)]
    await wait_until(lambda: len(stuck) == THREADS, "every thread to be at a stuck disk")
    try:
        kept = await store_body(sink, b"small", "small")
        addresses = await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)
    finally:
        go_on.set()
        done = await asyncio.gather(*running)

    assert kept
    assert addresses
    assert all(done)
    assert files(sink.disk.path) == {"small", *(f"large/{number}" for number in range(THREADS + 2))}


@pytest.mark.parametrize("unnamed", [True, False])
@pytest.mark.parametrize("size_bytes", [10, 4095])
async def test_a_short_write_is_continued(
    sink: FileSink,
    monkeypatch: pytest.MonkeyPatch,
    size_bytes: int,
    unnamed: bool,  # noqa: FBT001
) -> None:
    """write(2) may write fewer bytes than given, and reports it only by its return value."""
    if not unnamed:
        disable_unnamed_files(monkeypatch)
    writev = os.writev

    def half(file: int, blocks: list[memoryview]) -> int:
        of_ours = sink.disk.path in Path(f"/proc/self/fd/{file}").readlink().parents
        return writev(file, [blocks[0][: max(1, len(blocks[0]) // 2)]] if of_ours else blocks)

    monkeypatch.setattr(os, "writev", half)

    kept = await store_body(sink, some_bytes(size_bytes), "a")

    assert kept is not None
    assert (sink.disk.path / "a").read_bytes() == some_bytes(size_bytes)


async def test_a_disk_that_fills_up_within_the_last_block_fails_the_body(
    tmp_path: Path,
) -> None:
    """The kernel writes the bytes that fit and raises no error for them."""
    with mounted(tmp_path / "out") as out, opened(out) as sink:
        (out / "filler").write_bytes(b"x" * (3 << 20))
        with pytest.raises(OSError, match="No space left") as caught:
            await store_body(sink, some_bytes((1 << 20) + 10_000), "a")

        assert caught.value.errno == errno.ENOSPC
        assert files(out) == {"filler"}


async def test_cancellation_during_a_write_leaves_no_file(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer waits for its thread, and then removes the file that the thread creates."""
    at_it, go_on = threading.Event(), threading.Event()
    create = sink.disk.directory.create

    def slowly(part: str) -> int:
        at_it.set()
        go_on.wait(30)
        return create(part)

    monkeypatch.setattr(sink.disk.directory, "create", slowly)
    receiving = asyncio.create_task(store_body(sink, BLOCK * 4, "a"))
    await wait_until(at_it.is_set, "a thread to be at the first block")
    receiving.cancel()
    await asyncio.wait([receiving], timeout=0)
    receiving.cancel()
    go_on.set()
    await asyncio.wait([receiving])

    assert receiving.cancelled()
    assert files(sink.disk.path) == set()


async def test_a_body_shorter_than_its_length_fails_while_blocks_are_being_written(sink: FileSink) -> None:
    """The error counts all received bytes, also those not yet on disk."""
    with pytest.raises(Exception, match=f"received {len(BLOCK) * 2} of {len(BLOCK) * 3} bytes"):
        await store_body(sink, BLOCK * 2, "a", expected=Expected(len(BLOCK) * 3))

    assert files(sink.disk.path) == set()


async def test_blocks_with_offsets_are_hashed_in_order_as_gaps_close(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pwritev(2) writes fewer bytes on a nearly full disk. At most HASH_BYTES are hashed with one block."""
    body, pwritev = some_bytes(400_000), os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda file, blocks, at: pwritev(file, [blocks[0][:30_000]], at))
    monkeypatch.setattr(partial_file, "HASH_BYTES", 50_000)
    expected = Expected(len(body), hashlib.sha256(body).hexdigest())
    async with aclosing(sink.writer(ENTRY, 1, expected)) as writer:
        await writer.write_at(300_000, [memoryview(body)[300_000:350_000], body[350_000:]])
        sizes = [writer.size_bytes]
        await writer.write_at(0, [body[:100_000]])
        writer.extend(100_000)
        sizes.append(await writer.sync())
        await writer.write_at(100_000, [body[100_000:300_000]])
        writer.extend(len(body))
        await writer.join()
        stored = await writer.commit(lambda: True)

    assert sizes == [0, 100_000]
    assert stored is not None
    assert (stored.size_bytes, stored.sha256) == (len(body), expected.sha256)
    assert (sink.disk.path / stored.path).read_bytes() == body


async def test_a_kept_body_with_a_gap_ends_before_the_gap(sink: FileSink) -> None:
    """The takeover truncates the file to its start without gaps, and hashes that."""
    body = some_bytes(1_000_000)
    async with aclosing(sink.writer(ENTRY, 1, Expected(len(body)))) as writer:
        await writer.write_at(800_000, [body[800_000:]])
        await writer.write_at(0, [body[:600_000]])
        writer.extend(600_000)
        kept_bytes = await writer.keep()
    note = PartialNote(token=1, offset_bytes=kept_bytes, of="", etag='"one"')

    taken = await sink.partial_files.take_over(ENTRY.id, note, 2, on_cancelled=lambda _: None)
    assert taken is not None
    async with aclosing(sink.writer(ENTRY, 2, Expected(len(body)), resume=taken)) as rest:
        await rest.write_at(600_000, [body[600_000:]])
        rest.extend(len(body))
        await rest.join()
        stored = await rest.commit(lambda: True)

    assert kept_bytes == 600_000
    assert stored is not None
    assert stored.sha256 == hashlib.sha256(body).hexdigest()
    assert (sink.disk.path / stored.path).read_bytes() == body


async def test_a_block_that_vanished_from_the_disk_fails_the_body(sink: FileSink) -> None:
    """The file must not end before a byte that was written."""
    async with aclosing(sink.writer(ENTRY, 1, Expected())) as writer:
        await writer.write_at(0, [BLOCK])
        writer.extend(2 * BLOCK_BYTES)
        with pytest.raises(OSError, match="ends before byte"):
            await writer.join()
