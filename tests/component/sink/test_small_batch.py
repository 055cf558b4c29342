"""Small bodies are stored together: by one thread, and yet none has to wait for another's trouble."""

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
from tests.support.disks import ID, files, give, keep, mounted, opened, some_bytes
from tests.support.waiting import wait_until


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[FileSink]:
    """A sink on an empty folder."""
    with opened(tmp_path / "out") as made:
        yield made


def all_of(sink: FileSink, count: int) -> list[asyncio.Task[StoredAt | None]]:
    """So many bodies, each on its way to a name of its own, all at once."""
    return [
        asyncio.create_task(keep(sink, some_bytes(number), f"folder/{number}", place=number))
        for number in range(count)
    ]


class Stuck:
    """A disk on which bodies with some names stand still as they get them, until told to go on."""

    def __init__(self, names: set[str]) -> None:
        self.at: list[str] = []
        self.go_on = threading.Event()
        self._names = names
        self._name = Directory.name

    def __call__(self, folders: Directory, file: int, path: str) -> bool:
        """The step, at last."""
        if path in self._names:
            self.at.append(path)
            self.go_on.wait(30)
        return self._name(folders, file, path)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stuck]:
    """Three of ten stand still."""
    made = Stuck({"folder/0", "folder/4", "folder/9"})
    monkeypatch.setattr(Directory, "name", partialmethod(made))
    yield made
    made.go_on.set()


async def test_all_that_wait_are_stored_by_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several would only stand in each other's way."""
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


async def test_bodies_that_are_stuck_hold_up_no_other(sink: FileSink, stuck: Stuck) -> None:
    """Those after them find another thread, and those before them are told."""
    tasks = all_of(sink, 10)
    others = [task for number, task in enumerate(tasks) if number not in {0, 4, 9}]

    kept = await asyncio.gather(*others)
    await wait_until(lambda: len(stuck.at) == 3, "all three to be at the disk")

    assert all(kept)
    assert not any(tasks[number].done() for number in (0, 4, 9))
    stuck.go_on.set()
    assert all(await asyncio.gather(*tasks))
    assert files(sink.disk.path) == {f"folder/{number}" for number in range(10)}


async def test_a_disk_that_stands_still_has_no_more_threads_than_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many wait for it; once it goes on, so do they."""
    every = Stuck({f"folder/{number}" for number in range(30)})
    monkeypatch.setattr(Directory, "name", partialmethod(every))
    with opened(tmp_path / "out", BatchTimings(stuck_s=0.001)) as sink:
        tasks = all_of(sink, 30)
        await wait_until(lambda: len(every.at) == THREADS, "all threads to be at it")
        await asyncio.sleep(0.02)  # looks at what waits, in which nothing is to happen
        at_once = len(every.at)
        every.go_on.set()
        kept = await asyncio.gather(*tasks)

    assert at_once == THREADS
    assert all(kept)


async def test_on_a_slow_disk_bodies_wait_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a network's disk would have it: each answer takes its time, however many are asked for."""
    together, name = threading.Barrier(THREADS), Directory.name

    def together_only(self: Directory, file: int, path: str) -> bool:
        if path != "first":
            together.wait(30)
        return name(self, file, path)

    monkeypatch.setattr(Directory, "name", together_only)
    with opened(tmp_path / "out", BatchTimings(stuck_s=60.0, slow_s=-1.0, slow_turns=1)) as sink:
        await keep(sink, b"x", "first")
        kept = await asyncio.gather(*all_of(sink, THREADS))

    assert all(kept)


async def test_what_is_wrong_with_one_body_is_told_of_that_alone(sink: FileSink) -> None:
    """Those beside it are stored."""
    (sink.disk.path / "folder").mkdir()
    (sink.disk.path / "folder/2").symlink_to("nowhere")
    (sink.disk.path / "folder/3").write_bytes(b"theirs")
    refused = asyncio.create_task(keep(sink, b"x", "folder/3", place=99, if_exists="fail"))
    tasks = all_of(sink, 3)

    outcomes = await asyncio.gather(refused, *tasks, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [ExistsError, StoredAt, StoredAt, InTheWayError]
    assert files(sink.disk.path) == {"folder/0", "folder/1", "folder/2", "folder/3"}
    assert (sink.disk.path / "folder/3").read_bytes() == b"theirs"


async def test_a_disk_that_fills_up_among_them_has_what_it_took(tmp_path: Path) -> None:
    """Each body is whole or not there, and each that is not was told so."""
    with mounted(tmp_path / "out", "1m") as out, opened(out) as sink:
        body = some_bytes(100_000)
        receiving = [keep(sink, body, f"folder/{number}", place=number) for number in range(20)]

        outcomes = await asyncio.gather(*receiving, return_exceptions=True)

        stored = {outcome.path for outcome in outcomes if isinstance(outcome, StoredAt)}
        errors = [outcome for outcome in outcomes if isinstance(outcome, OSError)]
        assert stored
        assert stored == files(out)
        assert all((out / path).read_bytes() == body for path in stored)
        assert {error.errno for error in errors} == {errno.ENOSPC}
        assert len(stored) + len(errors) == 20


async def test_who_is_cancelled_while_a_body_waits_is_told_that_it_is_there(
    sink: FileSink, stuck: Stuck
) -> None:
    """What has its name counts, whoever has lost patience."""
    [receiving] = all_of(sink, 1)
    await wait_until(lambda: stuck.at, "the body to be at the disk")
    for _ in range(3):
        receiving.cancel()
        await asyncio.wait([receiving], timeout=0)
    stuck.go_on.set()

    kept = await receiving

    assert kept is not None
    assert files(sink.disk.path) == {"folder/0"}


async def test_the_lease_is_looked_at_once_a_body_has_been_written(sink: FileSink) -> None:
    """A lane that ends while its body waits, or is written, places nothing."""
    entry = Entry(id=ID, deadline_ms=0, fetch=Fetch(url="http://x/"))
    looks = iter([True, False])

    async with aclosing(sink.writer(entry, 1, Expected())) as part:
        await give(part, b"x" * 1000)
        kept = await part.commit(lambda: next(looks))

    assert kept is None
    assert next(looks, None) is None
    assert files(sink.disk.path) == set()


async def test_a_lane_that_is_lost_while_its_body_waits_loses_that_body_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bodies of other lanes that were handed over with it are stored."""
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


async def test_a_fetch_cancelled_while_its_body_waits_for_a_thread_gets_its_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body is stored after the one before it, and so is the one behind it."""
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


async def test_bodies_of_a_turn_are_confirmed_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look at the path of the out folder, after all of them have their names; a moved one fails them."""
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


async def test_a_disk_without_nameless_files_is_asked_once(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network's disk says so; bodies are parts first there, as large ones are everywhere."""
    asked, real = [], os.open

    def knows_none(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            asked.append(path)
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", knows_none)

    for number in range(3):
        assert await keep(sink, some_bytes(number), f"folder/{number}")

    assert asked == ["."]
    assert files(sink.disk.path) == {"folder/0", "folder/1", "folder/2"}


async def test_without_names_of_open_files_bodies_are_parts_first(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where /proc is not there, or not for us, nothing is given a name from there."""
    monkeypatch.setattr(directory_module, "_OPEN_FILES", "/nowhere")

    assert await keep(sink, b"x", "folder/a")

    assert (sink.disk.path / "folder/a").read_bytes() == b"x"
    assert files(sink.disk.path) == {"folder/a"}


async def test_after_the_end_nothing_is_stored(sink: FileSink) -> None:
    """Who comes late hears of it, and does not wait for ever."""
    sink.close()

    with pytest.raises(RuntimeError):
        await keep(sink, b"x", "a")


async def test_small_and_large_end_at_the_block(sink: FileSink) -> None:
    """What is less than a block is stored with others, whatever its size."""
    sizes = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1]
    receiving = [keep(sink, some_bytes(size), str(size), place=place) for place, size in enumerate(sizes)]

    kept = await asyncio.gather(*receiving)

    assert [each.size_bytes for each in kept if each] == sizes
    assert all((sink.disk.path / str(size)).read_bytes() == some_bytes(size) for size in sizes)
