"""The command `wacz`: py-wacz accepts its file, and warcio and cdxj-indexer agree on every record."""

import errno
import gzip
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer

from fetchfleet import Outcome
from fetchfleet.worker.cli.files import wacz as wacz_command
from fetchfleet.worker.cli.files.wacz import wacz
from fetchfleet.worker.errors import BAD_USE, FAILED, INTERRUPTED, CommandError
from fetchfleet.worker.sink.cdxj import segment_index
from fetchfleet.worker.sink.files.directory import Directory
from fetchfleet.worker.sink.files.open_file import lock
from fetchfleet.worker.sink.wacz import archive, package
from tests.component.conftest import Start
from tests.support.warc import judged_index, read
from tools.origin import behaviours as o
from tools.origin.server import Origin

HTML = [("Content-Type", "text/html; charset=utf-8")]
PAGE = b"<html>" + b"page " * 500
LARGE = b"0123456789abcdef" * 60_000


@pytest.fixture
async def out(origin: Origin, start: Start) -> Path:
    """An out folder with a compressed segment, one that is not, and a revisit record in each."""
    origin.behaviour = o.by_path(
        {"/a.html": o.ok(PAGE, HTML), "/b.html": o.ok(PAGE, HTML), "/large": o.ok(LARGE)}, otherwise=o.OK
    )
    for compression in ("gzip", "none"):
        worker = await start(sink="warc", warc_compression=compression, worker_id=compression)
        results = [await worker.one(origin.url(path)) for path in ("/a.html", "/b.html", "/large", "/small")]
        assert {Outcome.STORED} == {result.outcome for result in results}
        await worker.stop()
    return worker.out


def judged(file: Path) -> str:
    """Return what py-wacz says about a file."""
    command = [sys.executable, "-m", "wacz.main", "validate", "-f", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def names(folder: Path) -> set[str]:
    """Return the names in a folder."""
    return {path.name for path in folder.iterdir()}


def index_of(packed: zipfile.ZipFile) -> list[bytes]:
    """Return the lines of the index, after its blocks were checked against the index of blocks."""
    whole = packed.read("indexes/index.cdx.gz")
    [meta, *blocks] = packed.read("indexes/index.idx").splitlines()
    lines: list[bytes] = []
    assert meta == b'!meta 0 {"format": "cdxj-gzip-1.0", "filename": "index.cdx.gz"}'
    for block in blocks:
        first, _, values = block.partition(b" {")
        place = json.loads(b"{" + values)
        some = gzip.decompress(whole[place["offset"] : place["offset"] + place["length"]]).splitlines()
        assert some[0].startswith(first + b" {")
        lines += some
    assert lines == gzip.decompress(whole).splitlines() == sorted(lines)
    return lines


def check(file: Path, folder: Path) -> list[dict[str, Any]]:
    """Assert that the file is whole and that its index leads to its records. Returns the lines' values."""
    with zipfile.ZipFile(file) as packed:
        assert packed.testzip() is None
        packed.extractall(folder)
        stored = {info.filename for info in packed.infolist() if info.compress_type == zipfile.ZIP_STORED}
        segments = {name for name in packed.namelist() if name.startswith("archive/")}
        assert stored == segments | {"indexes/index.cdx.gz"}
        lines = index_of(packed)
    judged = b"".join(judged_index(folder / name) for name in segments)
    assert lines == sorted(judged.splitlines())
    found = [json.loads(line.split(b" ", 2)[2]) for line in lines]
    for values in found:
        segment = (folder / "archive" / values["filename"]).read_bytes()
        begin, length = int(values["offset"]), int(values["length"])
        [record] = read(segment[begin : begin + length])
        assert record.field("WARC-Target-URI") == values["url"]
        assert record.field("WARC-Payload-Digest") == values["digest"]
    return found


async def test_py_wacz_accepts_the_archive_of_an_out_folder(
    origin: Origin, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has every record, compressed, and a list of the pages."""
    file = tmp_path / "a.wacz"
    wacz(out, file, "A title", "A description")

    assert "the passed WACZ is valid" in judged(file)
    assert "2 segments, 8 records, 1 page, " in capsys.readouterr().err
    found = check(file, tmp_path / "unpacked")
    assert sorted(values["mime"] for values in found if "mime" in values) == [
        "text/html",
        *["warc/revisit"] * 4,
    ]
    with zipfile.ZipFile(file) as packed:
        head, page = map(json.loads, packed.read("pages/pages.jsonl").splitlines())
        listed = json.loads(packed.read("datapackage.json"))
    assert head["format"] == "json-pages-1.0"
    assert (page["url"], page["ts"][:2], len(page["ts"])) == (origin.url("/a.html"), "20", 20)
    assert (listed["title"], listed["description"]) == ("A title", "A description")
    assert names(tmp_path) == {"out", "a.wacz", "unpacked"}


async def test_an_index_that_is_missing_is_made_again(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive of an older version has no indexes. The index of the package has several blocks."""
    monkeypatch.setattr(archive, "BLOCK_LINES", 3)
    for index in (out / "warc").glob("*.cdxj"):
        index.unlink()

    wacz(out, tmp_path / "a.wacz")

    assert len(check(tmp_path / "a.wacz", tmp_path / "unpacked")) == 8


async def test_a_closed_segment_that_is_cut_off_is_named(out: Path, tmp_path: Path) -> None:
    """An archive without its last records would look complete. The same goes for one without an index."""
    for segment in [path for path in (out / "warc").iterdir() if path.suffix != ".cdxj"]:
        whole = segment.read_bytes()
        segment.write_bytes(whole[:-1])
        for _ in range(2):
            with pytest.raises(CommandError, match=f"{segment.name}: is damaged") as raised:
                wacz(out, tmp_path / "a.wacz")
            assert raised.value.exit_code == FAILED
            segment.with_name(f"{segment.name}.cdxj").unlink(missing_ok=True)
        segment.write_bytes(whole)

    assert not names(tmp_path) - {out.name}
    wacz(out, tmp_path / "a.wacz")


async def test_open_segments_of_live_workers_are_left_out(
    origin: Origin, out: Path, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of dead workers are recovered. A warning counts the others, and the exit code is 1."""
    live = await start(sink="warc", worker_id="live")
    await live.one(origin.url("/live"))
    [segment] = [path for path in (out / "warc").iterdir() if path.name.endswith(".warc.gz")]
    index = segment.with_name(f"{segment.name}.cdxj")
    segment.rename(segment.with_name(f"{segment.name}.writing"))
    index.unlink()

    with pytest.raises(typer.Exit) as incomplete:
        wacz(out, tmp_path / "a.wacz")

    assert FAILED == incomplete.value.exit_code
    assert "1 segment is still being written and left out" in capsys.readouterr().err
    assert len(check(tmp_path / "a.wacz", tmp_path / "unpacked")) == 8
    assert index.exists()


@pytest.fixture
def without_segments(tmp_path: Path) -> Path:
    """An out folder without segments."""
    (tmp_path / "empty/warc").mkdir(parents=True)
    return tmp_path / "empty"


@pytest.mark.parametrize(
    ("folder", "file", "message", "code"),
    [
        ("empty", "a.wacz", "empty/warc: no closed segment; run workers with --sink warc", BAD_USE),
        ("nowhere", "a.wacz", "nowhere: No such file or directory", FAILED),
        ("empty", "no/a.wacz", "a.wacz: No such file or directory; make its folder first", BAD_USE),
    ],
)
def test_a_wrong_argument_is_named(
    without_segments: Path, tmp_path: Path, folder: str, file: str, message: str, code: int
) -> None:
    """No file is written."""
    with pytest.raises(CommandError, match=message) as raised:
        wacz(tmp_path / folder, tmp_path / file)

    assert raised.value.exit_code == code
    assert list(tmp_path.iterdir()) == [without_segments]


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "a.wacz: No space left on device", FAILED),
        (KeyboardInterrupt(), "interrupted; .*a.wacz is unchanged", INTERRUPTED),
    ],
    ids=["disk", "interrupted"],
)
async def test_an_archive_that_is_not_completed_leaves_the_old_one(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, message: str, code: int
) -> None:
    """No temporary file remains beside it."""
    (tmp_path / "a.wacz").write_bytes(b"old")

    def fails(_: object) -> Iterator[bytes]:
        yield b"some"
        raise error

    monkeypatch.setattr(archive, "_blocks", fails)
    with pytest.raises(CommandError, match=message) as raised:
        wacz(out, tmp_path / "a.wacz")

    assert raised.value.exit_code == code
    assert (tmp_path / "a.wacz").read_bytes() == b"old"
    assert names(tmp_path) == {"out", "a.wacz"}


async def test_the_folder_of_a_killed_command_is_removed_and_that_of_a_live_one_stays(
    out: Path, tmp_path: Path
) -> None:
    """Only folders for the same file are removed. One that is empty may be about to be locked."""
    live, killed, empty, other = (
        tmp_path / f".{name}.writing" for name in ("a.wacz.1", "a.wacz.2", "a.wacz.3", "b.wacz.1")
    )
    for folder in (live, killed, empty, other):
        folder.mkdir()
        if folder is not empty:
            (folder / "half").write_bytes(b"x")
    descriptor = os.open(live, os.O_RDONLY)
    assert lock(descriptor)
    wacz(out, tmp_path / "a.wacz")
    os.close(descriptor)

    assert names(tmp_path) == {"out", "a.wacz", live.name, empty.name, other.name}


def test_a_command_locks_the_folder_in_which_it_writes(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second command for the same file leaves the folder of the first one as it is."""
    found: list[set[str]] = []

    def written(directory: Directory, *rest: Any) -> archive.Archived:
        if not found:
            found.append(names(tmp_path))
            wacz(out, tmp_path / "a.wacz")
            found.append(names(tmp_path))
        return archive.write_archive(directory, *rest)

    monkeypatch.setattr(wacz_command, "write_archive", written)
    wacz(out, tmp_path / "a.wacz")

    assert found[0] | {"a.wacz"} == found[1]
    assert names(tmp_path) == {"out", "a.wacz"}


async def test_an_index_that_cannot_be_saved_costs_no_record(
    origin: Origin, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The segment is closed without one, and the package has its lines."""
    monkeypatch.setattr(segment_index, "SUFFIX", "/x")
    worker = await start(sink="warc")
    result = await worker.one(origin.url())
    await worker.stop()
    monkeypatch.undo()

    assert worker.files() == {result.path}
    wacz(worker.out, tmp_path / "a.wacz")
    assert len(check(tmp_path / "a.wacz", tmp_path / "unpacked")) == 1


def test_a_package_names_each_entry_with_its_digest() -> None:
    """Sizes and digests are those of the stored bytes, also of an entry in several blocks."""
    file = io.BytesIO()
    packed = package.Package(file, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    packed.add("archive/A.warc.gz", [b"1", b"", b"23"])
    packed.finish(None, None)
    packed.close()

    with zipfile.ZipFile(file) as found:
        listed = json.loads(found.read("datapackage.json"))
    [entry] = listed["resources"]
    assert (entry["name"], entry["path"], entry["bytes"]) == ("a.warc.gz", "archive/A.warc.gz", 3)
    assert listed["created"] == "2026-01-02T03:04:05Z"
    assert "title" not in listed
