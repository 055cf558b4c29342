"""The export of the records of bodies to one file: each record once, after any interruption."""

import asyncio
import hashlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pytest

from fetchfleet import Outcome, Result
from fetchfleet.worker.body.json_lines import records_in
from fetchfleet.worker.local.output import jsonl_export
from fetchfleet.worker.local.output.jsonl_export import BLOCK_BYTES, ExportError, ExportTarget, JsonlExport
from tests.support.waiting import wait_until

BATCH = "0123456789abcdef"
Warnings = list[str]


@pytest.fixture
def target(tmp_path: Path) -> ExportTarget:
    """An export file, a folder of bodies, and the file with the export's position."""
    (tmp_path / "out").mkdir()
    return ExportTarget(str(tmp_path / "records"), tmp_path / "out", tmp_path / "note.json")


@pytest.fixture
def warnings() -> Warnings:
    """The warnings so far."""
    return []


def stored(target: ExportTarget, name: str, body: bytes) -> Result:
    """Write a body; return the result of its fetch."""
    (target.out / name).write_bytes(body)
    digest = hashlib.sha256(body).hexdigest()
    url = f"http://a.example/{name}"
    return Result(id=name, url=url, outcome=Outcome.STORED, worker="w", path=name, sha256=digest)


async def take(
    target: ExportTarget,
    warnings: Warnings,
    *results: Result,
    resumes: bool = False,
    after: int = 0,
    block_bytes: int = BLOCK_BYTES,
) -> None:
    """Export the results, at positions from 1-0 on."""
    with JsonlExport(target, BATCH, warnings.append, resumes=resumes, block_bytes=block_bytes) as gathering:
        assert gathering.position == (f"{after}-0" if after else "0")
        for place, result in enumerate(results, start=after + 1):
            await gathering.add(result, f"{place}-0")
        gathering.check(after + len(results))


def records(target: ExportTarget) -> bytes:
    """Return the content of the export file."""
    return Path(target.to).read_bytes()


def append(target: ExportTarget, more: bytes, keep_bytes: int | None = None) -> None:
    """Change the file as another process would: append, or truncate it."""
    Path(target.to).write_bytes(records(target)[:keep_bytes] + more)


async def test_each_record_is_written_on_a_line_without_surrounding_space(
    target: ExportTarget, warnings: Warnings
) -> None:
    """Blank lines are dropped. A fetch that stored no body adds nothing."""
    failed = Result(id="x", url="http://a.example/", outcome=Outcome.FAILED, worker="w")
    bodies = [b'\n {"a": 1}\t\r\n\r\n[2]\n', b"", b"3"]
    results = [stored(target, str(place), body) for place, body in enumerate(bodies)]

    await take(target, warnings, results[0], failed, *results[1:])

    assert records(target) == b'{"a": 1}\n[2]\n3\n'
    assert not warnings


async def test_a_large_body_is_exported_whole(target: ExportTarget, warnings: Warnings) -> None:
    """The export copies the body in many blocks."""
    body = b"".join(b"%d\n" % place for place in range(1000))

    await take(target, warnings, stored(target, "a", body), block_bytes=100)

    assert records(target) == body


async def test_an_export_continues_at_its_saved_position(target: ExportTarget, warnings: Warnings) -> None:
    """Records after the saved position are cut off. A new batch begins a new file."""
    one, two = stored(target, "a", b"1\n"), stored(target, "b", b"2\n")
    await take(target, warnings, one)
    append(target, b"half a rec")

    await take(target, warnings, two, resumes=True, after=1)
    assert records(target) == b"1\n2\n"

    await take(target, warnings, two)
    assert records(target) == b"2\n"


async def test_a_cancelled_export_leaves_whole_bodies(
    target: ExportTarget, warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file ends after a whole body, and the next command continues from there."""
    one, two = stored(target, "a", b"1\n"), stored(target, "b", b"2\n" * 50_000)
    midst, may_end = threading.Event(), threading.Event()

    def held(lines: Iterable[bytes]) -> Iterator[bytes]:
        for number, record in enumerate(records_in(lines)):
            if number == 30_000:
                midst.set()
                may_end.wait(30)
            yield record

    with monkeypatch.context() as patch:
        patch.setattr(jsonl_export, "records_in", held)
        taking = asyncio.create_task(take(target, warnings, one, two, block_bytes=1000))
        await wait_until(midst.is_set, "half of the second")
        assert len(records(target)) > 10_000
        taking.cancel()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await taking
    assert records(target) == b"1\n"

    await take(target, warnings, two, resumes=True, after=1)
    assert records(target) == b"1\n" + b"2\n" * 50_000


async def test_a_missing_or_changed_body_is_left_out(target: ExportTarget, warnings: Warnings) -> None:
    """Such bodies are counted, and the first one is named. All others are exported."""
    one, two, three = (stored(target, name, name.encode()) for name in ("1", "2", "3"))
    (target.out / "1").write_bytes(b"8")
    (target.out / "2").unlink()

    with pytest.raises(ExportError, match="the records of 2 bodies"):
        await take(target, warnings, one, two, three)

    with pytest.raises(ExportError, match="the records of 2 bodies"):
        await take(target, warnings, resumes=True, after=3)

    assert records(target) == b"3\n"
    assert [line.partition(":")[0] for line in warnings] == ["http"]
    assert "1: records left out" in warnings[0]
    assert "another body has replaced it" in warnings[0]


async def test_a_body_in_an_object_store_is_left_out(target: ExportTarget, warnings: Warnings) -> None:
    """A file of the same path in the out folder is another body."""
    result = msgspec.structs.replace(stored(target, "a", b"1\n"), store="s3://bucket/x")

    with pytest.raises(ExportError, match="the records of 1 bodies are missing"):
        await take(target, warnings, result)

    assert records(target) == b""
    assert ["s3://bucket/x/a: it is in an object store" in warning for warning in warnings] == [True]


@pytest.mark.parametrize("path", ["../secret", "a/../../secret", "/etc/passwd", "", "..", "a\0"])
async def test_a_path_that_leads_out_of_the_folder_is_never_read(
    target: ExportTarget, warnings: Warnings, path: str
) -> None:
    """It holds even if the body there has the digest of the result."""
    (target.out / "a").mkdir()
    outside = stored(target, "../secret", b"1")

    with pytest.raises(ExportError, match="the records of 1 bodies"):
        await take(target, warnings, msgspec.structs.replace(outside, path=path))

    assert records(target) == b""
    assert "records left out" in warnings[0]


async def test_results_read_earlier_without_an_export_are_reported_as_missing(
    target: ExportTarget, warnings: Warnings
) -> None:
    """The error has their number."""
    with JsonlExport(target, BATCH, warnings.append, resumes=True) as gathering:
        await gathering.add(stored(target, "a", b"1"), "7-0")
        with pytest.raises(ExportError, match="the records of 2 results"):
            gathering.check(3)


async def test_a_resumed_export_refuses_another_or_a_truncated_file(
    target: ExportTarget, warnings: Warnings
) -> None:
    """Its earlier records would be missing."""
    await take(target, warnings, stored(target, "a", b"1"))

    with pytest.raises(ExportError, match=f"records to {target.to}: give --lines-to that"):
        await take(target._replace(to=f"{target.to}.other"), warnings, resumes=True)
    append(target, b"", keep_bytes=1)
    with pytest.raises(ExportError, match="is shorter than the run left it"):
        await take(target, warnings, resumes=True)


async def test_a_full_disk_is_reported_with_the_export_file(target: ExportTarget, warnings: Warnings) -> None:
    """The message has the flag, the file and the cause."""
    with pytest.raises(ExportError, match="--lines-to /dev/full: No space left"):
        await take(target._replace(to="/dev/full"), warnings, stored(target, "a", b"1" * 100_000))


def rotate(target: ExportTarget) -> Path:
    """Rename the file and create another one in its place; return the new path of the first."""
    path = Path(target.to)
    moved = path.rename(path.with_name("moved"))
    path.write_bytes(b"another file")
    return moved


def remove(target: ExportTarget) -> None:
    """Remove the file."""
    Path(target.to).unlink()


async def test_an_export_leaves_a_new_file_under_its_name_unchanged(
    target: ExportTarget, warnings: Warnings
) -> None:
    """The records are in the renamed file. A removed file is an error."""
    result = stored(target, "1", b"[1]\n")
    with JsonlExport(target, BATCH, warnings.append, resumes=False) as gathering:
        await gathering.add(result, "1-0")
        moved = rotate(target)
        gathering.check(1)
    assert (b"[1]\n", b"another file") == (moved.read_bytes(), records(target))

    remove(target)
    with JsonlExport(target, BATCH, warnings.append, resumes=False) as gathering:
        await gathering.add(result, "1-0")
        remove(target)
        with pytest.raises(ExportError, match="the file was removed during the run"):
            gathering.check(1)
