"""Batches of small bodies: one thread stores them, and a stuck or failed body delays no other."""

import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from contextlib import aclosing
from functools import partialmethod
from pathlib import Path

import pytest

from fetchfleet import Fetch
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.worker.errors import ExistsError, InTheWayError
from fetchfleet.worker.sink.base import Expected
from fetchfleet.worker.sink.files import directory as directory_module
from fetchfleet.worker.sink.files.buffered_body import BLOCK_BYTES, BatchTimings
from fetchfleet.worker.sink.files.directory import Directory
from fetchfleet.worker.sink.files.out_folder import THREADS
from fetchfleet.worker.sink.files.sink import FileSink
from fetchfleet.worker.sink.index_entry import StoredAt
from tests.support.disks import ID, files, mounted, opened, some_bytes, store_body, write_piece
from tests.support.waiting import wait_until


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[FileSink]:
    """A sink on an empty folder."""
    with opened(tmp_path / "out") as made:
        yield made


def all_of(sink: FileSink, count: int) -> list[asyncio.Task[StoredAt | None]]:
    """Start to store that many bodies at once, each under its own name."""
    return [
        asyncio.create_task(store_body(sink, some_bytes(number), f"folder/{number}", place=number))
        for number in range(count)
    ]


class Stuck:
    """A disk that blocks before bodies with some names get them, until `go_on` is set."""

    def __init__(self, names: set[str]) -> None:
        self.at: list[str] = []
        self.go_on = threading.Event()
        self._names = names
        self._name = Directory.name

    def __call__(self, folders: Directory, file: int, path: str) -> bool:
        """Block if the name is one of the stuck, then name the file."""
        if path in self._names:
            self.at.append(path)
            self.go_on.wait(30)
        return self._name(folders, file, path)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stuck]:
    """Yield a disk on which three of ten bodies are stuck."""
    made = Stuck({"folder/0", "folder/4", "folder/9"})
    monkeypatch.setattr(Directory, "name", partialmethod(made))
    yield made
    made.go_on.set()


async def test_waiting_small_bodies_are_stored_by_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a fast disk several threads contend for the folder and gain nothing."""
    at_it: set[int] = set()
    most, name = 0, Directory.name

    def noted(self: Directory, file: int, path: str) -> bool:
        nonlocal most
        at_it.add(threading.get_ident())
        most = max(most, len(at_it))
        try:
            return name(self, file, path)
        finally:
            at_it.remove(threading.get_ident())

    monkeypatch.setattr(Directory, "name", noted)

    with opened(tmp_path / "out", BatchTimings(stuck_s=60.0, slow_s=60.0)) as sink:
        kept = await asyncio.gather(*all_of(sink, 200))

    assert most == 1
    assert [each.size_bytes for each in kept if each] == list(range(200))
    assert files(sink.disk.path) == {f"folder/{number}" for number in range(200)}
    assert all(
        (sink.disk.path / f"folder/{number}").read_bytes() == some_bytes(number) for number in range(200)
    )


async def test_stuck_bodies_delay_no_other_body(sink: FileSink, stuck: Stuck) -> None:
    """Another thread continues the batch. The bodies before a stuck one are committed."""
    tasks = all_of(sink, 10)
    others = [task for number, task in enumerate(tasks) if number not in {0, 4, 9}]

    kept = await asyncio.gather(*others)
    await wait_until(lambda: len(stuck.at) == 3, "all three to wait for the disk")

    assert all(kept)
    assert not any(tasks[number].done() for number in (0, 4, 9))
    stuck.go_on.set()
    assert all(await asyncio.gather(*tasks))
    assert files(sink.disk.path) == {f"folder/{number}" for number in range(10)}


async def test_a_stalled_disk_uses_a_fixed_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty bodies wait, and all are stored once the disk continues."""
    every = Stuck({f"folder/{number}" for number in range(30)})
    monkeypatch.setattr(Directory, "name", partialmethod(every))
    with opened(tmp_path / "out", BatchTimings(stuck_s=0.001)) as sink:
        tasks = all_of(sink, 30)
        await wait_until(lambda: len(every.at) == THREADS, "all threads to wait for the disk")
        await asyncio.sleep(0.02)  # long enough to check the waiting bodies several times
        at_once = len(every.at)
        every.go_on.set()
        kept = await asyncio.gather(*tasks)

    assert at_once == THREADS
    assert all(kept)


async def test_on_a_slow_disk_bodies_are_stored_in_parallel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network disk each call has latency, which threads overlap."""
    together, name = threading.Barrier(THREADS), Directory.name

    def together_only(self: Directory, file: int, path: str) -> bool:
        if path != "first":
            together.wait(30)
        return name(self, file, path)

    monkeypatch.setattr(Directory, "name", together_only)
    with opened(tmp_path / "out", BatchTimings(stuck_s=60.0, slow_s=-1.0, slow_turns=1)) as sink:
        await store_body(sink, b"x", "first")
        kept = await asyncio.gather(*all_of(sink, THREADS))

    assert all(kept)


async def test_an_error_of_one_body_in_a_batch_fails_only_that_body(sink: FileSink) -> None:
    """The other bodies of the batch are stored."""
    (sink.disk.path / "folder").mkdir()
    (sink.disk.path / "folder/2").symlink_to("nowhere")
    (sink.disk.path / "folder/3").write_bytes(b"theirs")
    refused = asyncio.create_task(store_body(sink, b"x", "folder/3", place=99, if_exists="fail"))
    tasks = all_of(sink, 3)

    outcomes = await asyncio.gather(refused, *tasks, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [ExistsError, StoredAt, StoredAt, InTheWayError]
    assert files(sink.disk.path) == {"folder/0", "folder/1", "folder/2", "folder/3"}
    assert (sink.disk.path / "folder/3").read_bytes() == b"theirs"


async def test_a_disk_that_fills_up_during_a_batch_keeps_the_bodies_that_fit(tmp_path: Path) -> None:
    """Each body is whole, or missing with an error."""
    with mounted(tmp_path / "out", "1m") as out, opened(out) as sink:
        body = some_bytes(100_000)
        receiving = [store_body(sink, body, f"folder/{number}", place=number) for number in range(20)]

        outcomes = await asyncio.gather(*receiving, return_exceptions=True)

        stored = {outcome.path for outcome in outcomes if isinstance(outcome, StoredAt)}
        errors = [outcome for outcome in outcomes if isinstance(outcome, OSError)]
        assert stored
        assert stored == files(out)
        assert all((out / path).read_bytes() == body for path in stored)
        assert {error.errno for error in errors} == {errno.ENOSPC}
        assert len(stored) + len(errors) == 20


async def test_a_fetch_cancelled_while_its_body_gets_its_name_receives_the_stored_path(
    sink: FileSink, stuck: Stuck
) -> None:
    """A body that has its name counts, also after repeated cancellation."""
    [receiving] = all_of(sink, 1)
    await wait_until(lambda: stuck.at, "the body to be at the disk")
    for _ in range(3):
        receiving.cancel()
        await asyncio.wait([receiving], timeout=0)
    stuck.go_on.set()

    kept = await receiving

    assert kept is not None
    assert files(sink.disk.path) == {"folder/0"}


async def test_the_lease_is_checked_again_after_a_body_is_written(sink: FileSink) -> None:
    """A lane that ends while its body waits or is written places no body."""
    entry = Entry(id=ID, deadline_ms=0, fetch=Fetch(url="http://x/"))
    looks = iter([True, False])

    async with aclosing(sink.writer(entry, 1, Expected())) as part:
        await write_piece(part, b"x" * 1000)
        kept = await part.commit(lambda: next(looks))

    assert kept is None
    assert next(looks, None) is None
    assert files(sink.disk.path) == set()


async def test_a_lost_lane_loses_only_its_own_body_of_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bodies of other lanes in the batch are stored."""
    at_first = Stuck({"folder/0"})
    monkeypatch.setattr(Directory, "name", partialmethod(at_first))
    lane = [True]

    async def lost_body(sink: FileSink) -> StoredAt | None:
        entry = Entry(id=ID, deadline_ms=0, fetch=Fetch(url="http://x/"))
        writer = sink.writer(entry, 1, Expected())
        writer.write(b"x" * 1000)
        return await writer.commit(lambda: lane[0])

    with opened(tmp_path / "out", BatchTimings(stuck_s=60.0)) as sink:
        first, second, third = all_of(sink, 3)
        lost = asyncio.create_task(lost_body(sink))
        await wait_until(lambda: at_first.at, "the first body to be at the disk")
        lane[0] = False
        at_first.go_on.set()
        stored = await asyncio.gather(first, second, third)

        assert await lost is None
        assert all(stored)
        assert files(sink.disk.path) == {"folder/0", "folder/1", "folder/2"}


async def test_a_fetch_cancelled_while_its_body_waits_in_a_batch_receives_its_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body keeps its place in the batch, and the one after it is stored too."""
    at_first = Stuck({"folder/0"})
    monkeypatch.setattr(Directory, "name", partialmethod(at_first))
    with opened(tmp_path / "out", BatchTimings(stuck_s=60.0)) as sink:
        first, cancelled, last = all_of(sink, 3)
        await wait_until(lambda: at_first.at, "the first body to be at the disk")
        for _ in range(3):
            cancelled.cancel()
            await asyncio.wait([cancelled], timeout=0)
        at_first.go_on.set()
        stored = await asyncio.gather(first, cancelled, last)

        assert all(stored)
        assert files(sink.disk.path) == {"folder/0", "folder/1", "folder/2"}


async def test_the_bodies_of_a_turn_are_confirmed_by_one_check_of_the_out_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check follows after all have their names. A moved out folder fails all of them."""
    looks, in_place, out = [], Directory.in_place, tmp_path / "out"

    def noted(self: Directory) -> bool:
        looks.append(files(out))
        return in_place(self)

    monkeypatch.setattr(Directory, "in_place", noted)
    with opened(out, BatchTimings(turn_s=60.0, stuck_s=60.0)) as sink:
        kept = await asyncio.gather(*all_of(sink, 20))
        seen, looks[:] = looks[:], []

        name = Directory.name

        def moves_at_last(self: Directory, file: int, path: str) -> bool:
            named = name(self, file, path)
            if path == "folder/19":
                out.rename(tmp_path / "moved")
            return named

        monkeypatch.setattr(Directory, "name", moves_at_last)
        for number in range(20):
            (out / f"folder/{number}").unlink()
        moved = await asyncio.gather(*all_of(sink, 20), return_exceptions=True)

    assert all(kept)
    assert seen == [{f"folder/{number}" for number in range(20)}]
    assert {errno.ESTALE} == {error.errno for error in moved if isinstance(error, OSError)}
    assert len(looks) == 1
    assert not [outcome for outcome in moved if not isinstance(outcome, OSError)]


async def test_missing_support_for_unnamed_files_is_detected_once(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network disks have no O_TMPFILE. Small bodies then start as partial files, as large ones do."""
    asked, real = [], os.open

    def refuse_tmpfile(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            asked.append(path)
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refuse_tmpfile)

    for number in range(3):
        assert await store_body(sink, some_bytes(number), f"folder/{number}")

    assert asked == ["."]
    assert files(sink.disk.path) == {"folder/0", "folder/1", "folder/2"}


async def test_without_proc_bodies_start_as_partial_files(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Naming an unnamed file needs /proc/self/fd, which may be missing or not permitted."""
    monkeypatch.setattr(directory_module, "_OPEN_FILES", "/nowhere")

    assert await store_body(sink, b"x", "folder/a")

    assert (sink.disk.path / "folder/a").read_bytes() == b"x"
    assert files(sink.disk.path) == {"folder/a"}


async def test_a_closed_sink_stores_no_body(sink: FileSink) -> None:
    """A late body fails at once instead of waiting."""
    sink.close()

    with pytest.raises(RuntimeError):
        await store_body(sink, b"x", "a")


async def test_bodies_around_the_size_of_a_block_are_stored_whole(sink: FileSink) -> None:
    """A body smaller than a block is stored in a batch, a larger one on its own."""
    sizes = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1]
    receiving = [
        store_body(sink, some_bytes(size), str(size), place=place) for place, size in enumerate(sizes)
    ]

    kept = await asyncio.gather(*receiving)

    assert [each.size_bytes for each in kept if each] == sizes
    assert all((sink.disk.path / str(size)).read_bytes() == some_bytes(size) for size in sizes)
