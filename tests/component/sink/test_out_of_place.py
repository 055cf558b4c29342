"""An out folder that is moved, removed or replaced under a worker: results name only bodies inside it."""

import errno
import shutil
import subprocess
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet import Fetch, Outcome
from fetchfleet.jobs.contract.checks.field_checks import IfExists
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.worker.inspect.explain import explain_lane
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.runtime.timings import WorkerTimings
from fetchfleet.worker.sink.base import Expected
from fetchfleet.worker.sink.files import out_folder
from fetchfleet.worker.sink.files.buffered_body import BLOCK_BYTES
from fetchfleet.worker.sink.files.directory import Directory
from fetchfleet.worker.sink.files.sink import FileSink, FileWriter
from tests.component.conftest import HOST, Lines, Start, tuned
from tests.support import warc
from tests.support.disks import ID, disable_unnamed_files, files, mounted, opened, store_body, write_piece
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin.server import Origin

BODY = b"x" * (2 * BLOCK_BYTES)


@pytest.fixture
def timings() -> WorkerTimings:
    """Return timings: the test starts each disk check, and a fetch is retried after 50 ms."""
    return replace(tuned(disk_pause_s=0.05), disk_check_s=3600, heartbeat_s=0.03)


def move(out: Path) -> Path:
    """Move the folder away; return its new path."""
    return out.rename(out.with_name("out.old"))


def events(lines: Lines, event: str) -> list[Any]:
    """Return every log line of the event."""
    return [line for line in lines if line["event"] == event]


def replaced(out: Path) -> None:
    """Move the folder away and make another one in its place, as `mv out out.old; mkdir out` does."""
    move(out)
    out.mkdir()


def linked(out: Path) -> None:
    """Put a link to another folder in its place."""
    move(out)
    other = out.with_name("other")
    other.mkdir()
    out.symlink_to(other)


def moved_with_its_parent(out: Path) -> None:
    """Move the parent folder, and make the path again."""
    parent = out.parent.rename(out.parent.with_name("parent.old"))
    assert (parent / out.name).is_dir()
    out.mkdir(parents=True)


@pytest.mark.parametrize("sink", ["files", "warc"])
@pytest.mark.parametrize("change", [replaced, linked, moved_with_its_parent, shutil.rmtree])
async def test_bodies_are_stored_below_out_after_the_folder_was_replaced(
    origin: Origin,
    tmp_path: Path,
    lines: Lines,
    change: Callable[[Path], None],
    sink: str,
    redis_url: str,
    timings: WorkerTimings,
) -> None:
    """Until the disk check, bodies are retried. Then the worker opens the folder that has the path."""
    out = tmp_path / "parent" / "out"
    async with OneWorker(redis_url, out, timings=timings, sink=sink) as worker:
        before = await worker.one(origin.url("/before"))
        change(out)
        batch = await worker.submit([origin.url(f"/{n}") for n in range(8)])
        await wait_until(lambda: events(lines, "fetch.retry"), "a body to be retried")
        assert 0 == (await batch.counts()).done
        await worker.runtime.disk_guard.check()

        results = await results_of(batch)
        assert {(Outcome.STORED, 1)} == {(result.outcome, result.attempts) for result in results}
        assert [str(out)] == [line["out"] for line in events(lines, "disk.reopened")]
        assert not events(lines, "disk.refused")
    assert Outcome.STORED is before.outcome
    if sink == "files":
        assert {result.path for result in results} == {
            name for name in files(out) if not name.startswith(".")
        }
    else:
        assert [b"ok"] * 8 == [warc.record_of(out, result).payload for result in results]
        assert {".gz", ".cdxj"} == {Path(name).suffix for name in files(tmp_path) if "/warc/" in name}


def gone(_: Path) -> None:
    """Leave the path empty."""


@pytest.mark.parametrize("instead", [gone, Path.touch], ids=["nothing", "a file"])
async def test_a_worker_without_its_out_folder_starts_no_fetch_until_it_is_back(
    origin: Origin, worker: OneWorker, lines: Lines, redis: Redis, instead: Callable[[Path], None]
) -> None:
    """One log event names the folder, and so does explain. The worker makes no other folder."""
    guard = worker.runtime.disk_guard
    away = move(worker.out)
    instead(worker.out)
    await guard.check()
    batch = await worker.submit([origin.url()])
    await guard.check()

    shown = f"lacks its out folder ({guard.error})"
    await wait_until(lambda: _is_shown(shown, redis), "a heartbeat")
    [line] = events(lines, "disk.refused")
    assert ("folder", "error") == (line["wanting"], line["log_level"])
    assert f"{worker.out} was moved, removed or replaced: " in line["error"]
    assert [] == origin.requests
    worker.out.unlink(missing_ok=True)
    away.rename(worker.out)
    await guard.check()

    [result] = await results_of(batch)
    assert (Outcome.STORED, b"ok") == (result.outcome, worker.body(result))
    assert 1 == len(events(lines, "disk.ok"))
    assert not events(lines, "disk.reopened")


async def _is_shown(text: str, redis: Redis) -> bool:
    return text in (await explain_lane(redis, Policy(), HOST)).why


async def test_if_exists_ignores_files_in_an_out_folder_that_was_moved_away(
    origin: Origin, start: Start
) -> None:
    """The request is sent, and its body is stored in the new folder."""
    worker = await start()
    first = await worker.one(origin.url(), dest="a/b")
    assert Outcome.STORED is first.outcome
    replaced(worker.out)
    batch = await worker.submit([Fetch(url=origin.url(), dest="a/b", if_exists=IfExists.SKIP)])
    await wait_until(lambda: len(origin.requests) == 2, "the request")
    await worker.runtime.disk_guard.check()

    [result] = await results_of(batch)
    assert (Outcome.STORED, b"ok") == (result.outcome, (worker.out / "a/b").read_bytes())


def receive(sink: FileSink, body: bytes) -> FileWriter:
    """Return a writer for the body."""
    entry = Entry(id=ID, deadline_ms=0, fetch=Fetch(url="http://x/"))
    return sink.writer(entry, 1, Expected(len(body)))


async def test_a_small_body_in_progress_is_stored_in_the_new_folder(tmp_path: Path) -> None:
    """The body is in memory until it is complete."""
    out = tmp_path / "out"
    with opened(out) as sink:
        async with aclosing(receive(sink, b"body")) as writer:
            await write_piece(writer, b"body")
            replaced(out)
            assert str(out) == (await sink.disk.space()).reopened
            stored = await writer.commit(lambda: True)
        assert stored is not None
        assert b"body" == (out / stored.path).read_bytes()


@pytest.mark.parametrize("back", [False, True], ids=["another folder", "no folder yet"])
async def test_a_large_body_in_progress_fails_when_its_folder_is_moved(tmp_path: Path, back: bool) -> None:  # noqa: FBT001
    """Its partial file is in the folder that was moved away."""
    out = tmp_path / "out"
    with opened(out) as sink:
        async with aclosing(receive(sink, BODY * 2)) as writer:
            await write_piece(writer, BODY)
            await writer.sync()
            (move if back else replaced)(out)
            assert back is (await sink.disk.space()).displaced
            await write_piece(writer, BODY[:BLOCK_BYTES])
            with pytest.raises(OSError, match="was moved") as raised:
                await write_piece(writer, BODY[:BLOCK_BYTES])
        assert errno.ESTALE == raised.value.errno


@pytest.mark.parametrize("unnamed", [True, False])
@pytest.mark.parametrize("body", [b"small", BODY], ids=["small", "large"])
async def test_a_body_that_gets_its_name_in_a_moved_folder_is_not_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: bytes,
    unnamed: bool,  # noqa: FBT001
) -> None:
    """The folder moves right before the call that names the file."""
    if not unnamed:
        disable_unnamed_files(monkeypatch)
    out = tmp_path / "out"
    for step in ("name", "put"):
        real = getattr(Directory, step)

        def late(self: Directory, *args: Any, real: Callable[..., Any] = real, **kwargs: Any) -> Any:
            if out.exists():
                move(out)
            return real(self, *args, **kwargs)

        monkeypatch.setattr(Directory, step, late)
    with opened(out) as sink:
        with pytest.raises(OSError, match="was moved"):
            await store_body(sink, body)
        monkeypatch.undo()
        out.mkdir()
        await sink.disk.space()
        stored = await store_body(sink, body)
    assert stored is not None
    assert body == (out / stored.path).read_bytes()


@pytest.mark.parametrize("folder", [".fetchfleet", ".fetchfleet/parts"])
async def test_the_workers_own_folders_are_made_again(tmp_path: Path, folder: str) -> None:
    """A body with its partial file in a removed folder fails. The next one is stored."""
    out = tmp_path / "out"
    with opened(out) as sink:
        async with aclosing(receive(sink, BODY)) as writer:
            await write_piece(writer, BODY)
            await writer.sync()
            shutil.rmtree(out / folder)
            with pytest.raises(FileNotFoundError):
                await writer.commit(lambda: True)
        stored = await store_body(sink, BODY)
    assert stored is not None
    assert {stored.path} == files(out)


async def test_a_folder_on_the_device_below_a_mount_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is created in it."""
    monkeypatch.setattr(out_folder, "_device_below", lambda folder: folder.stat().st_dev)
    out = tmp_path / "out"
    with opened(out) as sink:
        replaced(out)
        space = await sink.disk.space()
        with pytest.raises(OSError, match="was moved"):
            await store_body(sink, b"body")
    assert space.displaced
    assert f"{out} was moved, removed or replaced: its file system is no longer mounted" in str(space.error)
    assert not files(out)


def mount(command: list[str]) -> None:
    """Run the command, which mounts or unmounts."""
    subprocess.run(command, check=True)


async def test_the_folder_below_an_unmounted_disk_is_not_used(tmp_path: Path) -> None:
    """After an unmount the path leads to the disk below. A disk that is mounted again is used."""
    with mounted(tmp_path / "out") as out:
        with opened(out) as sink:
            mount(["umount", "--lazy", str(out)])
            space = await sink.disk.space()
            assert (True, "") == (space.displaced, space.reopened)
            assert "its file system is no longer mounted" in str(space.error)
            mount(["mount", "-t", "tmpfs", "tmpfs", str(out)])
            assert str(out) == (await sink.disk.space()).reopened
            stored = await store_body(sink, b"body")
        assert stored is not None
        assert b"body" == (out / stored.path).read_bytes()


async def test_a_body_file_is_read_from_a_replaced_in_folder(
    origin: Origin, start: Start, tmp_path: Path, lines: Lines
) -> None:
    """The fetch is retried while the folder is missing."""
    source = tmp_path / "in"
    source.mkdir()
    (source / "file").write_bytes(b"old")
    worker = await start(in_folder=source)
    source.rename(tmp_path / "in.old")
    batch = await worker.submit([Fetch(url=origin.url(), method="PUT", body_file="file")])
    await wait_until(lambda: events(lines, "fetch.retry"), "the fetch to be retried")
    source.mkdir()
    (source / "file").write_bytes(b"new")

    [result] = await results_of(batch)
    assert Outcome.STORED is result.outcome
    assert [b"new"] == [seen.body for seen in origin.requests]
