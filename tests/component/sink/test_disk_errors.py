"""Errors of the disk at every step of a body: final for one fetch, or retried later."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fetchfleet import Outcome, Reason, Result
from fetchfleet.worker.runtime.timings import WorkerTimings
from fetchfleet.worker.sink import disk_space
from fetchfleet.worker.sink.files.buffered_body import BLOCK_BYTES
from fetchfleet.worker.sink.files.directory import Directory
from tests.component.conftest import Lines, Start, tuned
from tests.support.disks import disable_unnamed_files, mounted, remount
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Origin

NAMES = ("EACCES", "EILSEQ", "EINVAL", "ENAMETOOLONG", "EPERM", "EXDEV")
WAITED = ("EDQUOT", "EIO", "EMFILE", "ENOSPC", "EROFS", "ETIMEDOUT")

SMALL, LARGE = 10, 2 * BLOCK_BYTES + 10


@pytest.fixture
def timings() -> WorkerTimings:
    """Return timings with pauses and disk checks of 20 ms."""
    return replace(tuned(disk_pause_s=0.02), disk_check_s=0.02, disk_full_defer_s=0.05)


os_open = os.open


class Failing:
    """A system call that fails once for a body, but not for the worker's trial file."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self.real = real
        self.number: int | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Block if the name is one of the stuck, then name the file."""
        creates = self.real is not os_open or ("dir_fd" in kwargs and args[1] & os.O_EXCL)
        name = str(Path(f"/proc/self/fd/{args[0]}").readlink()) if isinstance(args[0], int) else str(args[0])
        if self.number is None or not creates or "trial" in name:
            return self.real(*args, **kwargs)
        number, self.number = self.number, None
        raise OSError(number, os.strerror(number))


@contextmanager
def failing(step: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Failing]:
    """Make a step of a body fail on demand."""
    name = {"create": "open", "write": "writev"}.get(step, step)
    call = Failing(getattr(os, name))
    monkeypatch.setattr(os, name, call)
    yield call


STEPS: list[Any] = [
    ("mkdir", SMALL, {}, {}),
    ("write", SMALL, {}, {}),
    ("write", LARGE, {}, {}),
    ("fsync", LARGE, {"durability": "full"}, {}),
    ("link", SMALL, {}, {"if_exists": "fail"}),
]
"""A step, the size of a body that needs it, the policy, and the fields of its fetch."""

MORE_STEPS: list[Any] = [
    ("create", SMALL, {}, {}),
    ("create", LARGE, {}, {}),
    ("fsync", SMALL, {"durability": "file"}, {}),
    ("rename", SMALL, {}, {}),
    ("rename", LARGE, {}, {}),
]
"""Further steps: tests/component/runtime/test_disk_guard.py covers their transient errors."""


def label(value: object) -> str:
    """Return the part of a test ID."""
    return str(value) if isinstance(value, str | int) else ""


@pytest.mark.parametrize(("step", "size_bytes", "policy", "fields"), [*STEPS, *MORE_STEPS], ids=label)
async def test_an_error_of_one_name_or_size_ends_that_fetch_at_once(
    origin: Origin,
    start: Start,
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    size_bytes: int,
    policy: dict[str, Any],
    fields: dict[str, Any],
) -> None:
    """The fetch sends one request and leaves no file. The log has the error's text, but no `disk.full`."""
    disable_unnamed_files(monkeypatch)
    worker = await start(policy=policy)
    origin.behaviour = o.ok(b"x" * size_bytes)
    with failing(step, monkeypatch) as call:
        for name in (*NAMES, "EFBIG"):
            call.number = getattr(errno, name)
            result = await worker.one(origin.url(f"/{name}"), dest=f"{name}/file", **fields)
            assert call.number is None

            reason = Reason.TOO_LARGE if name == "EFBIG" else Reason.BAD_DEST
            assert (result.outcome, result.reason, result.status) == (Outcome.FAILED, reason, 200), name
            assert (result.attempts, result.interruptions) == (1, 0)
            [line] = [line for line in lines if line["event"] == "fetch.finished" and line["id"] == result.id]
            text = "mounted inside" if name == "EXDEV" and step in {"rename", "link"} else None
            assert (text or os.strerror(getattr(errno, name))) in line["note"]

    assert len(origin.requests) == len(NAMES) + 1
    assert not [line for line in lines if line["event"] in {"disk.full", "disk.refused", "fetch.retry"}]
    assert not worker.files()
    assert not worker.parts()


@pytest.mark.parametrize(("step", "size_bytes", "policy", "fields"), STEPS, ids=label)
async def test_a_transient_disk_error_is_retried(
    origin: Origin,
    start: Start,
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    size_bytes: int,
    policy: dict[str, Any],
    fields: dict[str, Any],
) -> None:
    """No attempt is charged, and the next one stores the body."""
    disable_unnamed_files(monkeypatch)
    worker = await start(policy=policy)
    origin.behaviour = o.ok(b"x" * size_bytes)
    with failing(step, monkeypatch) as call:
        for name in WAITED:
            call.number = getattr(errno, name)
            result = await worker.one(origin.url(f"/{name}"), dest=f"{name}/file", **fields)

            assert (result.outcome, result.attempts, result.interruptions) == (Outcome.STORED, 1, 1), name

    waits = [line for line in lines if line["event"] == "fetch.retry"]
    assert {"disk"} == {line["reason"] for line in waits}
    assert len(WAITED) == len(waits)
    assert not [line for line in lines if line["event"] in {"disk.full", "disk.refused"}]


async def refused_until_repaired(
    worker: OneWorker, url: str, lines: Lines, repair: Callable[[], None], event: str
) -> tuple[Result, dict[str, Any]]:
    """Fetch while the disk refuses, repair it once the event is logged, and return result and line."""
    batch = await worker.submit([url])
    await wait_until(
        lambda: [line for line in lines if line["event"] == event], "the worker to log the event"
    )
    repair()
    await wait_until(lambda: [line for line in lines if line["event"] == "disk.ok"], "the worker to continue")
    [result] = [result async for result in batch.results()]
    return result, next(line for line in lines if line["event"] == event)


@pytest.mark.parametrize("name", ["EMFILE", "ESTALE", "EPERM"])
async def test_a_worker_that_cannot_store_on_a_healthy_disk_logs_it_and_waits(
    origin: Origin, start: Start, lines: Lines, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It lacks descriptors or permissions for all bodies: no fetch fails, and the log has no `disk.full`."""
    disable_unnamed_files(monkeypatch)
    number = getattr(errno, name)
    create, check_permission = Directory.create, Directory.check_permission
    now = True

    def refuse(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if now:
                raise OSError(number, os.strerror(number))
            return real(*args)

        return call

    worker = await start()
    monkeypatch.setattr(Directory, "create", refuse(create))
    monkeypatch.setattr(Directory, "check_permission", refuse(check_permission))

    def repair() -> None:
        nonlocal now
        now = False

    result, line = await refused_until_repaired(worker, origin.url(), lines, repair, "disk.refused")

    assert (result.outcome, result.attempts) == (Outcome.STORED, 1)
    assert (line["log_level"], line["wanting"]) == ("error", "writing")
    assert os.strerror(number) in line["error"]
    assert not [line for line in lines if line["event"] == "disk.full"]


async def test_an_exceeded_quota_counts_as_a_full_disk(
    origin: Origin, start: Start, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk reports free space, so the log line has the error's text."""
    disable_unnamed_files(monkeypatch)
    monkeypatch.setattr(disk_space, "PAUSE_S", 0.1)
    create, now = Directory.create, [True]

    def refuse(self: Directory, name: str) -> int:
        if now:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return create(self, name)

    worker = await start()
    monkeypatch.setattr(Directory, "create", refuse)

    result, line = await refused_until_repaired(worker, origin.url(), lines, now.clear, "disk.full")

    assert (result.outcome, result.attempts) == (Outcome.STORED, 1)
    assert (line["wanting"], os.strerror(errno.EDQUOT) in line["error"]) == ("writing", True)


async def test_a_removed_out_folder_is_made_again(origin: Origin, worker: OneWorker, lines: Lines) -> None:
    """The fetch may be interrupted once."""
    shutil.rmtree(worker.out)

    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts) == (Outcome.STORED, 1)
    assert result.interruptions <= 1
    assert (worker.out / str(result.path)).read_bytes() == b"ok"
    assert [line["out"] for line in lines if line["event"] == "disk.reopened"] == [str(worker.out)]
    assert not [line for line in lines if line["event"] == "disk.full"]


async def test_a_read_only_mount_inside_the_out_folder_fails_only_its_own_fetches(
    origin: Origin, worker: OneWorker, lines: Lines
) -> None:
    """The note names the mount. The disk of the out folder still stores bodies."""
    with mounted(worker.out / "inner") as inner:
        remount(inner, "ro")
        result = await worker.one(origin.url(), dest="inner/new/file")
        other = await worker.one(origin.url(), dest="outer/file")

    assert (result.outcome, result.reason, result.attempts) == (Outcome.FAILED, Reason.BAD_DEST, 1)
    assert other.outcome is Outcome.STORED
    [line] = [line for line in lines if line["event"] == "fetch.finished" and line["id"] == result.id]
    assert "a file system is mounted inside the out folder" in line["note"]


def test_a_read_only_out_folder_is_refused_at_the_start(tmp_path: Path) -> None:
    """The error is that of the system, for a new folder and for one used before."""
    with mounted(tmp_path / "disk") as disk:
        used = Directory(disk / "used")
        used.open()
        remount(disk, "ro")
        with pytest.raises(OSError, match="Read-only file system"):
            used.check_permission([""])
        used.close()
        with pytest.raises(OSError, match="Read-only file system"):
            Directory(disk / "new").open()
