"""The records of bodies, put together in one file: each once, wherever it was interrupted."""

import asyncio
import hashlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pytest

from fetchfleet import Outcome, Result
from fetchfleet.worker.body.json_lines import records_in
from fetchfleet.worker.local import jsonl_export
from fetchfleet.worker.local.jsonl_export import BLOCK_BYTES, ExportError, ExportTarget, JsonlExport
from tests.support.waiting import wait_until

BATCH = "0123456789abcdef"
Said = list[str]


@pytest.fixture
def target(tmp_path: Path) -> ExportTarget:
    """A file, a folder of bodies, and where it is noted how far it is."""
    (tmp_path / "out").mkdir()
    return ExportTarget(str(tmp_path / "records"), tmp_path / "out", tmp_path / "note.json")


@pytest.fixture
def said() -> Said:
    """The warnings so far."""
    return []


def stored(target: ExportTarget, name: str, body: bytes) -> Result:
    """The result of a fetch whose body is there."""
    (target.out / name).write_bytes(body)
    digest = hashlib.sha256(body).hexdigest()
    url = f"http://a.example/{name}"
    return Result(id=name, url=url, outcome=Outcome.STORED, worker="w", path=name, sha256=digest)


async def take(
    target: ExportTarget,
    said: Said,
    *results: Result,
    resumes: bool = False,
    after: int = 0,
    block_bytes: int = BLOCK_BYTES,
) -> None:
    """The results gathered, at positions from 1-0 on."""
    with JsonlExport(target, BATCH, said.append, resumes=resumes, block_bytes=block_bytes) as gathering:
        assert gathering.position == (f"{after}-0" if after else "0")
        for place, result in enumerate(results, start=after + 1):
            await gathering.add(result, f"{place}-0")
        gathering.check(after + len(results))


def records(target: ExportTarget) -> bytes:
    """The content of the file."""
    return Path(target.to).read_bytes()


def append(target: ExportTarget, more: bytes, keep_bytes: int | None = None) -> None:
    """Somebody else's hand at the file: something more, or all but the beginning gone."""
    Path(target.to).write_bytes(records(target)[:keep_bytes] + more)


async def test_records_are_written_bare_a_line_each(target: ExportTarget, said: Said) -> None:
    """Without the blank lines, the ends and the space around them; nothing of a fetch that stored nothing."""
    failed = Result(id="x", url="http://a.example/", outcome=Outcome.FAILED, worker="w")
    bodies = [b'\n {"a": 1}\t\r\n\r\n[2]\n', b"", b"3"]
    results = [stored(target, str(place), body) for place, body in enumerate(bodies)]

    await take(target, said, results[0], failed, *results[1:])

    assert records(target) == b'{"a": 1}\n[2]\n3\n'
    assert not said


async def test_a_large_body_comes_whole(target: ExportTarget, said: Said) -> None:
    """Over many blocks."""
    body = b"".join(b"%d\n" % place for place in range(1000))

    await take(target, said, stored(target, "a", body), block_bytes=100)

    assert records(target) == body


async def test_it_goes_on_where_it_was(target: ExportTarget, said: Said) -> None:
    """Records after the saved state are cut off; a new batch begins a new file."""
    one, two = stored(target, "a", b"1\n"), stored(target, "b", b"2\n")
    await take(target, said, one)
    append(target, b"half a rec")

    await take(target, said, two, resumes=True, after=1)
    assert records(target) == b"1\n2\n"

    await take(target, said, two)
    assert records(target) == b"2\n"


async def test_being_cancelled_leaves_whole_bodies(
    target: ExportTarget, said: Said, monkeypatch: pytest.MonkeyPatch
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
        taking = asyncio.create_task(take(target, said, one, two, block_bytes=1000))
        await wait_until(midst.is_set, "half of the second")
        assert len(records(target)) > 10_000
        taking.cancel()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await taking
    assert records(target) == b"1\n"

    await take(target, said, two, resumes=True, after=1)
    assert records(target) == b"1\n" + b"2\n" * 50_000


async def test_a_body_that_is_another_by_now_is_left_out(target: ExportTarget, said: Said) -> None:
    """Each missing one is counted, the first is named; all others are written."""
    one, two, three = (stored(target, name, name.encode()) for name in ("1", "2", "3"))
    (target.out / "1").write_bytes(b"8")
    (target.out / "2").unlink()

    with pytest.raises(ExportError, match="the records of 2 bodies"):
        await take(target, said, one, two, three)

    with pytest.raises(ExportError, match="the records of 2 bodies"):
        await take(target, said, resumes=True, after=3)

    assert records(target) == b"3\n"
    assert [line.partition(":")[0] for line in said] == ["http"]
    assert "1: its records are left out" in said[0]
    assert "has been replaced" in said[0]


@pytest.mark.parametrize("path", ["../secret", "a/../../secret", "/etc/passwd", "", "..", "a\0"])
async def test_a_path_that_leads_out_of_the_folder_is_never_read(
    target: ExportTarget, said: Said, path: str
) -> None:
    """Although the body there has the digest of the result."""
    (target.out / "a").mkdir()
    theirs = stored(target, "../secret", b"1")

    with pytest.raises(ExportError, match="the records of 1 bodies"):
        await take(target, said, msgspec.structs.replace(theirs, path=path))

    assert records(target) == b""
    assert "its records are left out" in said[0]


async def test_what_was_read_before_without_us_is_told(target: ExportTarget, said: Said) -> None:
    """Results that were read without an export are reported as missing."""
    with JsonlExport(target, BATCH, said.append, resumes=True) as gathering:
        await gathering.add(stored(target, "a", b"1"), "7-0")
        with pytest.raises(ExportError, match="the records of 2 results"):
            gathering.check(3)


async def test_another_file_is_refused(target: ExportTarget, said: Said) -> None:
    """Where a batch goes on, half of its records would be elsewhere."""
    await take(target, said, stored(target, "a", b"1"))

    with pytest.raises(ExportError, match=f"go to {target.to}: give that"):
        await take(target._replace(to=f"{target.to}.other"), said, resumes=True)
    append(target, b"", keep_bytes=1)
    with pytest.raises(ExportError, match="is shorter than what was written to it"):
        await take(target, said, resumes=True)


async def test_a_full_disk_is_named(target: ExportTarget, said: Said) -> None:
    """With the place that is full."""
    with pytest.raises(ExportError, match="--lines-to /dev/full: No space left"):
        await take(target._replace(to="/dev/full"), said, stored(target, "a", b"1" * 100_000))


def rotate(target: ExportTarget) -> Path:
    """Move the file away and put another one in its place; return where it is."""
    path = Path(target.to)
    moved = path.rename(path.with_name("moved"))
    path.write_bytes(b"somebody else's")
    return moved


def remove(target: ExportTarget) -> None:
    """Remove the file."""
    Path(target.to).unlink()


async def test_a_file_that_takes_the_name_meanwhile_stays_as_it_is(target: ExportTarget, said: Said) -> None:
    """The records are in the file that was moved away; one that was removed is an error."""
    result = stored(target, "1", b"[1]\n")
    with JsonlExport(target, BATCH, said.append, resumes=False) as gathering:
        await gathering.add(result, "1-0")
        moved = rotate(target)
        gathering.check(1)
    assert (b"[1]\n", b"somebody else's") == (moved.read_bytes(), records(target))

    remove(target)
    with JsonlExport(target, BATCH, said.append, resumes=False) as gathering:
        await gathering.add(result, "1-0")
        remove(target)
        with pytest.raises(ExportError, match="was removed while it was written"):
            gathering.check(1)
