"""The out folder as a boundary: no link or path leads a body outside it."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fetchfleet import Outcome, Reason
from fetchfleet.jobs.contract.entry import PartialNote
from fetchfleet.worker.errors import InTheWayError
from fetchfleet.worker.sink.files.buffered_body import BLOCK_BYTES
from fetchfleet.worker.sink.files.directory import Directory
from fetchfleet.worker.sink.files.sink import FileSink
from tests.component.conftest import Lines, Start
from tests.support.disks import ID, disable_unnamed_files, files, mounted, opened, store_body
from tools.one_worker import OneWorker
from tools.origin.server import Origin

BODY = b"ours"
PART = f"{ID}.1"


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[FileSink]:
    """A sink on an empty folder."""
    with opened(tmp_path / "out") as made:
        yield made


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the out folder, with a file in it."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_bytes(b"theirs")
    return folder


def is_untouched(outside: Path) -> bool:
    """Return True if the folder is unchanged."""
    return files(outside) == {"file"} and (outside / "file").read_bytes() == b"theirs"


def store(view: Directory, path: str) -> None:
    """Store an empty file at the path, as a small body is stored."""
    file, named = view.create_unnamed(), False
    if file is not None:
        try:
            named = view.name(file, path)
        finally:
            os.close(file)
    if not named:
        os.close(view.create(PART))
        view.put(PART, path)


@pytest.mark.parametrize(
    ("dest", "link", "target"),
    [
        ("a", "a", "../outside/file"),
        ("a", "a", "../outside/new"),
        ("a/b", "a", "../outside"),
        ("a/b/c", "a/b", "../../outside"),
        ("a/b", "a", "sibling"),
        ("a/b", "a", "a"),
    ],
    ids=["file", "dangling", "parent", "grandparent", "inside", "loop"],
)
async def test_a_link_on_the_path_of_a_body_is_refused(
    sink: FileSink, outside: Path, dest: str, link: str, target: str
) -> None:
    """The link is the final name or a parent and leads anywhere. It stays, and the error names it."""
    (sink.disk.path / "sibling").mkdir()
    (sink.disk.path / link).parent.mkdir(exist_ok=True)
    (sink.disk.path / link).symlink_to(target)

    with pytest.raises(InTheWayError, match="is a symbolic link"):
        await store_body(sink, BODY, dest)

    assert is_untouched(outside)
    assert (sink.disk.path / link).is_symlink()
    assert not files(sink.disk.partial_folder)


@pytest.mark.parametrize("size_bytes", [10, BLOCK_BYTES + 10], ids=["small", "large"])
@pytest.mark.parametrize("planted", ["link", "folder"])
async def test_a_link_or_folder_at_the_name_of_a_partial_file_is_refused(
    sink: FileSink, outside: Path, monkeypatch: pytest.MonkeyPatch, planted: str, size_bytes: int
) -> None:
    """The writer creates its partial file exclusively, so no write follows a link."""
    disable_unnamed_files(monkeypatch)
    if planted == "link":
        (sink.disk.partial_folder / PART).symlink_to(outside / "file")
    else:
        (sink.disk.partial_folder / PART).mkdir()

    with pytest.raises(InTheWayError, match=f"{PART}' is a"):
        await store_body(sink, b"x" * size_bytes, "a")

    assert is_untouched(outside)
    assert not (sink.disk.path / "a").exists()


async def test_a_link_at_the_name_of_a_partial_file_does_not_affect_unnamed_bodies(
    sink: FileSink, outside: Path
) -> None:
    """Link and target stay as they are."""
    (sink.disk.partial_folder / PART).symlink_to(outside / "file")

    assert await store_body(sink, BODY, "a")

    assert (sink.disk.path / "a").read_bytes() == BODY
    assert (sink.disk.partial_folder / PART).is_symlink()
    assert is_untouched(outside)


async def test_a_leftover_partial_file_is_replaced(sink: FileSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that was read-only for some time kept it."""
    disable_unnamed_files(monkeypatch)
    (sink.disk.partial_folder / PART).write_bytes(b"older and longer than ours")

    assert await store_body(sink, BODY, "a")

    assert (sink.disk.path / "a").read_bytes() == BODY
    assert files(sink.disk.path) == {"a"}


async def test_a_link_in_place_of_the_workers_own_folder_is_refused_at_the_start(
    tmp_path: Path, outside: Path
) -> None:
    """The error names the link to remove. The out folder itself may be a link."""
    (tmp_path / "out").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "out")
    with opened(tmp_path / "alias") as sink:
        assert await store_body(sink, BODY, "a/b")
    assert (tmp_path / "out/a/b").read_bytes() == BODY
    (tmp_path / "out/.fetchfleet/parts").rmdir()
    (tmp_path / "out/.fetchfleet/parts").symlink_to(outside)

    sink = FileSink(tmp_path / "out")
    with pytest.raises(OSError, match=r"'parts' in the path .* is a symbolic link"):
        sink.open()
    sink.close()

    assert is_untouched(outside)


HOSTILE_PATHS = [
    *("../outside/file", "a/../../outside/file", "/etc/passwd", "..", ".", "", "a/", "a//b", "a\0", "./a"),
]


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_no_call_accepts_a_path_that_leads_out_of_the_out_folder(
    sink: FileSink, outside: Path, tmp_path: Path, path: str
) -> None:
    """Such a path cannot come from a fetch, but from a result, a note or an index entry."""
    directory = sink.disk.directory
    (tmp_path / "out/a").mkdir()
    os.close(directory.create(PART))
    note = PartialNote(token=1, offset_bytes=1, of="", etag='"v"')
    ways: list[Callable[[], object]] = [
        lambda: directory.open_file(path),
        lambda: directory.put(PART, path),
        lambda: directory.put(PART, path, replace=False),
        lambda: directory.put(path, "new"),
        lambda: directory.create(path),
        lambda: directory.open_partial(path),
        lambda: directory.rename_partial(path, PART),
        lambda: directory.rename_partial(PART, path),
        lambda: directory.drop(path),
        lambda: store(directory, path),
    ]
    with directory.cached_view(1) as view:
        ways += [lambda: view.put(PART, path), lambda: store(view, path)]
        for way in ways:
            with pytest.raises(InTheWayError):
                way()

    assert directory.stat(path) is None
    assert sink.partial_files.take(path, note, 2, threading.Event()) is None
    sink.disk.remove_partial_file(f"../../outside/file{path}", note).result()
    assert is_untouched(outside)


async def test_a_folder_that_was_moved_away_receives_no_further_body(sink: FileSink, tmp_path: Path) -> None:
    """The next body with its name is stored in a new folder inside the out folder."""
    await store_body(sink, BODY, "folder/a")
    (sink.disk.path / "folder").rename(tmp_path / "elsewhere")

    await store_body(sink, BODY, "folder/b")

    assert files(tmp_path / "elsewhere") == {"a"}
    assert files(sink.disk.path) == {"folder/b"}


@pytest.mark.parametrize("unnamed", [True, False])
async def test_a_batch_opens_its_folders_again_after_a_moment(
    sink: FileSink,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unnamed: bool,  # noqa: FBT001
) -> None:
    """A folder that is moved during a batch receives bodies for that time at most."""
    if not unnamed:
        disable_unnamed_files(monkeypatch)
    now_s = 0.0
    with sink.disk.directory.cached_view(1.0, lambda: now_s) as view:
        store(view, "folder/a")
        now_s = 0.9
        store(view, "folder/b")
        (sink.disk.path / "folder").rename(tmp_path / "elsewhere")
        now_s = 1.0
        store(view, "folder/c")

    assert files(tmp_path / "elsewhere") == {"a", "b"}
    assert files(sink.disk.path) == {"folder/c"}


async def test_a_folder_removed_during_a_batch_is_made_again(
    sink: FileSink,
) -> None:
    """Another program removes the folder of the body and that of partial files."""
    with sink.disk.directory.cached_view(60.0) as view:
        store(view, "folder/a")
        (sink.disk.path / "folder/a").unlink()
        (sink.disk.path / "folder").rmdir()
        sink.disk.partial_folder.rmdir()
        store(view, "folder/b")

    assert files(sink.disk.path) == {"folder/b"}


async def test_the_index_does_not_follow_a_link_at_its_folder(
    origin: Origin, start: Start, outside: Path
) -> None:
    """Index entries for `fallback` are files in the out folder too."""
    worker = await start(policy={"fallback": "stale"})
    (worker.out / ".fetchfleet/stored").symlink_to(outside)

    result = await worker.one(origin.url())

    assert result.outcome is Outcome.STORED
    assert is_untouched(outside)
    assert not worker.parts()


@pytest.mark.parametrize("planted", ["link", "folder", "link above"])
async def test_an_error_line_names_the_path_that_is_in_the_way(
    origin: Origin, worker: OneWorker, lines: Lines, outside: Path, planted: str
) -> None:
    """The fetch ends as `bad_dest`."""
    dest = "evil/file" if planted == "link above" else "evil"
    if planted == "folder":
        (worker.out / "evil").mkdir()
    else:
        (worker.out / "evil").symlink_to(outside)

    result = await worker.one(origin.url(), dest=dest)

    [line] = [line for line in lines if line["event"] == "disk.in_the_way"]
    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.BAD_DEST)
    assert (line["log_level"], line["id"]) == ("error", result.id)
    assert "'evil'" in line["error"]
    assert is_untouched(outside)
    assert not worker.parts()


async def test_a_disk_mounted_inside_the_out_folder_is_named_in_the_note(
    origin: Origin, worker: OneWorker, lines: Lines
) -> None:
    """rename(2) does not cross file systems, so the fetch ends as `bad_dest`."""
    with mounted(worker.out / "inner"):
        result = await worker.one(origin.url(), dest="inner/a")

    assert (result.outcome, result.reason, result.attempts) == (Outcome.FAILED, Reason.BAD_DEST, 1)
    [line] = [line for line in lines if line["event"] == "fetch.finished"]
    assert line["note"].startswith("a file system is mounted inside the out folder")
    assert not worker.parts()
