"""Durability: the syncs before a result is written, and the files after a kill at any step."""

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fetchfleet import Outcome
from fetchfleet.worker import errors
from fetchfleet.worker.lanes.settler import Settler
from fetchfleet.worker.sink.base import StorageOptions
from fetchfleet.worker.sink.files.buffered_body import BLOCK_BYTES
from fetchfleet.worker.sink.files.sink import FileSink
from tests.component.conftest import Lines, Start, tuned
from tests.support.disks import ID, disable_unnamed_files, files, opened, some_bytes, store_body
from tests.support.killed_sink import DEST, KilledSink, driver
from tools.origin.server import Origin

SMALL, LARGE = 10, 2 * BLOCK_BYTES + 10
BOTH = pytest.mark.parametrize("size_bytes", [SMALL, LARGE], ids=["small", "large"])


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[FileSink]:
    """A sink on an empty folder."""
    with opened(tmp_path / "out") as made:
        yield made


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives each later fsync, rename and link, in order."""
    done: list[str] = []
    fsync, rename, link = os.fsync, os.rename, os.link

    def synced(file: int) -> None:
        name = Path(f"/proc/self/fd/{file}").readlink().name
        done.append(f"fsync {'part' if name.startswith('0123456789abcdef-') else name}")
        fsync(file)

    def renamed(*args: Any, **kwargs: Any) -> None:
        done.append("rename")
        rename(*args, **kwargs)

    def linked(*args: Any, **kwargs: Any) -> None:
        done.append("link")
        link(*args, **kwargs)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "link", linked)
    return done


@BOTH
@pytest.mark.parametrize(
    ("durability", "expected"),
    [
        ("none", ["rename"]),
        ("file", ["fsync part", "rename"]),
        ("full", ["fsync part", "rename", "fsync deeper", "fsync folder", "fsync out"]),
    ],
)
async def test_body_name_and_folders_are_synced_in_order(
    sink: FileSink,
    steps: list[str],
    monkeypatch: pytest.MonkeyPatch,
    durability: str,
    expected: list[str],
    size_bytes: int,
) -> None:
    """The body is synced before it has its name, and then every folder on the path to it."""
    disable_unnamed_files(monkeypatch)
    kept = await store_body(
        sink, some_bytes(size_bytes), "folder/deeper/a", StorageOptions(durability=durability)
    )

    assert kept is not None
    assert expected == steps
    assert (sink.disk.path / kept.path).read_bytes() == some_bytes(size_bytes)


@pytest.mark.parametrize(("durability", "expected"), [("none", ["link"]), ("file", ["fsync part", "rename"])])
async def test_an_unsynced_small_body_has_no_temporary_name(
    sink: FileSink, steps: list[str], durability: str, expected: list[str]
) -> None:
    """O_TMPFILE creates it and a link names it. A synced body starts as a partial file."""
    kept = await store_body(sink, some_bytes(SMALL), "folder/deeper/a", StorageOptions(durability=durability))

    assert kept is not None
    assert expected == steps
    assert (sink.disk.path / kept.path).read_bytes() == some_bytes(SMALL)


async def test_the_result_is_written_after_the_disk_is_synced(
    origin: Origin, start: Start, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The durability here comes from the policy of the host."""
    add = Settler.add

    def noted(*args: Any) -> None:
        steps.append("result")
        add(*args)

    monkeypatch.setattr(Settler, "add", noted)
    worker = await start(hosts={"127.0.0.11": {"durability": "full"}})

    await worker.one(origin.url(), dest="folder/a")

    assert steps[-3:] == ["fsync folder", "fsync out", "result"]


@pytest.mark.parametrize("failing", ["part", "folder"])
async def test_a_body_with_a_failed_fsync_is_fetched_again(
    origin: Origin, start: Start, lines: Lines, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """The worker drops the file without a second fsync and charges no attempt."""
    fsync, asked = os.fsync, []

    def fails_once(file: int) -> None:
        name = str(Path(f"/proc/self/fd/{file}").readlink())
        asked.append(os.fstat(file).st_ino)
        if len(asked) == (1 if failing == "part" else 2):
            assert ("/parts/" in name) is (failing == "part")
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(file)

    monkeypatch.setattr(os, "fsync", fails_once)
    worker = await start(policy={"durability": "full"}, timings=tuned(disk_pause_s=0.05))

    result = await worker.one(origin.url(), dest="a", if_exists="fail")

    assert (result.outcome, result.attempts, result.interruptions) == (Outcome.STORED, 1, 1)
    assert (len(origin.requests), worker.body(result)) == (2, b"ok")
    [retry] = [line for line in lines if line["event"] == "fetch.retry"]
    assert retry["reason"] == "disk"
    assert not worker.parts()


@pytest.fixture(scope="module")
def deaths() -> Iterator[KilledSink]:
    """Yield the driver of sinks that are killed."""
    with driver() as running:
        yield running


@BOTH
@pytest.mark.parametrize("unnamed", [True, False], ids=["unnamed", "partial file"])
@pytest.mark.parametrize(
    ("durability", "if_exists", "old"),
    [
        ("none", "replace", None),
        ("none", "replace", "old"),
        ("none", "fail", None),
        ("full", "replace", "old"),
        ("full", "fail", None),
    ],
    ids=["new", "replace", "fail if it exists", "synced replace", "synced, fail if it exists"],
)
def test_a_kill_at_any_step_leaves_a_whole_body_or_none(
    deaths: KilledSink,
    tmp_path: Path,
    size_bytes: int,
    durability: str,
    if_exists: str,
    old: str | None,
    unnamed: bool,  # noqa: FBT001
) -> None:
    """Killed before any call that changes the disk, it leaves a whole body or the old one at the name."""
    lives = deaths(tmp_path, size_bytes, durability, if_exists, old, unnamed=unnamed)

    *killed, last = lives
    before = "nothing" if old is None else "old"
    assert {life["found"] for life in killed} <= {before, "whole"}
    assert (last["found"], last["parts"]) == ("whole", [])
    needs_no_part = unnamed and size_bytes == SMALL and durability == "none" and old is None
    placing = "link" if if_exists == "fail" or needs_no_part else "rename"
    assert not needs_no_part or not any(life["parts"] for life in lives)
    assert placing in last["steps"]
    assert len(killed) == len(last["steps"]) >= 5
    wholes = [life["found"] == "whole" for life in lives]
    assert wholes == sorted(wholes), "a body that has its name must keep it"
    assert not [life for life in killed if placing not in life["steps"] and life["found"] == "whole"]


@BOTH
@pytest.mark.parametrize("durability", ["none", "full"])
@pytest.mark.parametrize("old", [None, "old"], ids=["free", "taken"])
def test_an_attempt_repeated_after_a_kill_leaves_one_file(
    deaths: KilledSink, tmp_path: Path, size_bytes: int, durability: str, old: str | None
) -> None:
    """With `suffix`, the repeated attempt finds its own file. A file of another body keeps its name."""
    lives = deaths(tmp_path, size_bytes, durability, "suffix", old, unnamed=True)

    suffixed = DEST if old is None else f"{DEST}-{ID}"
    expected = {suffixed: hashlib.sha256(some_bytes(size_bytes)).hexdigest()}
    if old is not None:
        expected[DEST] = hashlib.sha256(old.encode()).hexdigest()
    assert len(lives) >= 5
    for life in lives:
        assert expected == life["bodies"]
        assert life["found"] in ({"nothing", "whole"} if old is None else {"old"})


async def test_a_body_with_a_wrong_digest_is_dropped_at_full_durability(sink: FileSink) -> None:
    """The sink checks the digest before it syncs."""
    with pytest.raises(errors.DigestMismatchError):
        await store_body(sink, some_bytes(LARGE), "a", StorageOptions(durability="full"), sha256="0" * 64)

    assert files(sink.disk.path) == set()
