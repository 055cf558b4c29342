"""A file that becomes a segment: a kill or an error of the disk at each system call on the way."""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fetchfleet.worker.http.wire import Wire
from fetchfleet.worker.sink.files.directory import PARTIAL_FILES, WARC_FOLDER, Directory
from fetchfleet.worker.sink.files.open_file import lock
from fetchfleet.worker.sink.index_entry import StoredAt
from fetchfleet.worker.sink.warc import record_format
from fetchfleet.worker.sink.warc.known_bodies import KnownBodies
from fetchfleet.worker.sink.warc.record_format import END, RecordedExchange
from fetchfleet.worker.sink.warc.recovery import recover
from fetchfleet.worker.sink.warc.segments import PartOfRecord, Segments, WarcOptions, WarcRecord
from tests.support.warc import check_indexes, read, segments

BODY = b"0123456789abcdef" * 200
SHA256 = hashlib.sha256(BODY)
DURABILITIES = pytest.mark.parametrize("durability", ["none", "file", "full"])
CALLS = ("open", "stat", "fstat", "rename", "writev", "lseek", "fdatasync", "fsync", "ftruncate", "unlink")
PARTIAL = "0123456789abcdef-00000007.1.warc"
KINDS = ["warcinfo", "request", "response"]
WIRE = Wire("http://h/p", "GET", b"/p", [(b"Host", b"h")], "HTTP/1.1", 200, b"OK", [(b"A", b"b")])


def place(out: Path, durability: str, before_call: Callable[[int], None]) -> StoredAt | None:
    """Make a partial file with BODY a segment, and call `before_call` with the number of each system call.

    Removes the partial file at the end, like its writer. Returns None after an error.
    """
    directory, ids = Directory(out), record_format.RecordIds(os.urandom(16))
    directory.open()
    made = Segments(directory, "w", "test", WarcOptions(1 << 30, 3600), KnownBodies(directory), ids)
    new, record_ids = made.new(), (ids.next(), ids.next())
    exchange = RecordedExchange(WIRE, "0123456789abcdef-00000007", "2026-01-02T03:04:05.000006Z")
    digest = record_format.digest_text(SHA256.digest())
    request = record_format.request(exchange, record_ids[1], record_ids[0])
    http_head = record_format.response_head(WIRE)
    head = record_format.response(exchange, record_ids, http_head, digest, len(BODY))
    body_at = len(new.begin) + len(request) + len(head)
    record = WarcRecord(
        blocks=(request, head),
        request_bytes=len(request),
        response_bytes=len(head) + len(BODY) + len(END),
        body_bytes=len(BODY),
        sha256=SHA256.hexdigest(),
        capture=exchange.capture(digest, revisit=False),
        file=PartOfRecord(PARTIAL, len(BODY), END, body_at),
    )
    file = directory.create(PARTIAL)
    lock(file)
    os.pwrite(file, BODY, body_at)
    try:
        with watched(before_call), suppress(OSError):
            return made.place(new, record, durability)
        return None
    finally:
        os.close(file)
        directory.drop(PARTIAL)
        directory.close()


@contextmanager
def watched(before_call: Callable[[int], None]) -> Iterator[None]:
    """Call `before_call` with the number of each system call of the block, before it."""
    count = 0

    def watch(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            unwatched.undo()
            try:
                before_call(count)
            finally:
                watch_all()
            return real(*arguments, **options)

        return call

    real = {name: getattr(os, name) for name in CALLS}
    unwatched = pytest.MonkeyPatch()

    def watch_all() -> None:
        for name in CALLS:
            unwatched.setattr(os, name, watch(real[name]))

    watch_all()
    try:
        yield
    finally:
        unwatched.undo()


@DURABILITIES
def test_a_kill_before_any_call_leaves_whole_records_and_no_temporary_file(
    tmp_path: Path, durability: str
) -> None:
    """Recovery finds the records that were complete, indexes them, and removes the partial file."""

    def copy(number: int) -> None:
        shutil.copytree(tmp_path / "out", tmp_path / f"{number}")

    place(tmp_path / "out", durability, copy)

    found = []
    for number in range(1, len(list(tmp_path.iterdir()))):
        killed = Directory(tmp_path / f"{number}")
        killed.open()
        with killed.chain(WARC_FOLDER):
            recover(killed)
        killed.close()
        check_indexes(tmp_path / f"{number}")
        assert not list((tmp_path / f"{number}" / PARTIAL_FILES).iterdir())
        found.append(
            [record for segment in segments(tmp_path / f"{number}").values() for record in read(segment)]
        )
    assert [len(records) for records in found] == sorted(len(records) for records in found)
    assert {0, 1, 2, 3} == {len(records) for records in found}
    assert all(KINDS[: len(records)] == [record.kind for record in records] for records in found)
    assert {BODY} == {record.payload for records in found for record in records[2:]}


@DURABILITIES
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_of_any_call_leaves_a_whole_record_or_nothing(
    tmp_path: Path, durability: str, code: int
) -> None:
    """An error after the record is complete may cost the index, or leave the final name to recovery."""

    def fails(at: int) -> Callable[[int], None]:
        def before_call(number: int) -> None:
            last.append(number)
            if number == at:
                raise OSError(code, os.strerror(code))

        return before_call

    last, at, outcomes = [0], 0, []
    while last[-1] >= at:
        at += 1
        last.clear()
        out = tmp_path / f"{at}"
        stored = place(out, durability, fails(at))
        outcomes.append(stored is not None)
        if stored is None:
            assert not [path for path in out.rglob("*") if path.is_file()], at
        else:
            records = read(segments(out)[stored.path])
            assert [record.kind for record in records] == KINDS, at
            assert (records[2].payload, records[2].offset) == (BODY, stored.offset), at
            assert not list((out / PARTIAL_FILES).iterdir()), at
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}
