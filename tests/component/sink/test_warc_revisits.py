"""Revisit records of the WARC sink: a body that is in a segment already is not stored again."""

import errno
import os
from typing import Any

import pytest

from fetchfleet import Outcome
from fetchfleet.worker.sink.files.buffered_body import BLOCK_BYTES
from tests.component.conftest import Start
from tests.support.warc import WarcRecord, check_indexes, read, record_of, segments
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Origin

LARGE = b"0123456789abcdef" * (2 * BLOCK_BYTES // 16)


def revisits(worker: OneWorker) -> list[WarcRecord]:
    """Return the revisit records of all segments."""
    found = [record for segment in segments(worker.out).values() for record in read(segment)]
    return sorted(
        (one for one in found if one.kind == "revisit"), key=lambda one: str(one.field("WARC-Date"))
    )


@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize("size", [2000, len(LARGE)], ids=["small", "large"])
async def test_a_body_that_is_stored_already_becomes_a_revisit_record(
    origin: Origin, start: Start, compression: str, size: int
) -> None:
    """The record has the new head and names the record with the body. The result leads to the body."""
    worker = await start(sink="warc", warc_compression=compression)
    origin.behaviour = o.sequence(
        o.ok(LARGE[:size], [("X-N", "1")]), o.ok(LARGE[:size], [("X-N", "2")]), o.ok(b"other" * 1000)
    )
    first, second, third = [await worker.one(origin.url(f"/{n}")) for n in range(3)]

    [revisit] = revisits(worker)
    original = record_of(worker.out, first)
    assert {Outcome.STORED} == {result.outcome for result in (first, second, third)}
    assert revisit.field("WARC-Profile") == (
        "http://netpreserve.org/warc/1.1/revisit/identical-payload-digest"
    )
    assert revisit.field("WARC-Refers-To-Target-URI") == origin.url("/0")
    for there, here in (("Refers-To", "Record-ID"), ("Refers-To-Date", "Date"), ("Payload-Digest",) * 2):
        assert revisit.field(f"WARC-{there}") == original.field(f"WARC-{here}") is not None
    assert revisit.field("WARC-Target-URI") == origin.url("/1")
    assert (revisit.field("Fetchfleet-ID"), revisit.field("WARC-Truncated")) == (second.id, "length")
    assert (revisit.http.get_header("X-N"), revisit.payload) == ("2", b"")
    assert (second.path, second.offset, second.length) == (first.path, first.offset, first.length)
    assert (second.sha256, second.bytes) == (first.sha256, size)
    assert record_of(worker.out, third).payload == b"other" * 1000
    await worker.stop()
    check_indexes(worker.out)
    assert not worker.parts()


async def test_later_runs_know_the_bodies_of_earlier_segments(origin: Origin, start: Start) -> None:
    """They read the indexes of the folder. A body whose segment is gone is stored again."""
    origin.behaviour = o.ok(LARGE[:2000])
    before = await start(sink="warc", worker_id="before")
    first = await before.one(origin.url("/1"))
    await before.stop()
    after = await start(sink="warc", worker_id="after")
    second = await after.one(origin.url("/2"))
    (after.out / str(first.path)).unlink()
    third = await after.one(origin.url("/3"))

    assert (second.path, second.offset) == (first.path, first.offset)
    assert [origin.url("/2")] == [one.field("WARC-Target-URI") for one in revisits(after)]
    assert record_of(after.out, third).payload == LARGE[:2000]


@pytest.mark.parametrize(
    ("size", "settings"), [(1023, {}), (2000, {"warc_revisit": False})], ids=["small", "off"]
)
async def test_small_bodies_and_a_setting_prevent_revisit_records(
    origin: Origin, start: Start, size: int, settings: dict[str, Any]
) -> None:
    """Each result then has a response record of its own."""
    worker = await start(sink="warc", **settings)
    origin.behaviour = o.ok(LARGE[:size])

    results = [await worker.one(origin.url(f"/{n}")) for n in range(2)]

    assert [LARGE[:size]] * 2 == [record_of(worker.out, result).payload for result in results]
    assert results[0].offset != results[1].offset
    assert not revisits(worker)


@pytest.mark.parametrize("durability", ["file", "full"])
async def test_a_revisit_record_refers_to_a_synced_record(
    origin: Origin, start: Start, durability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The segment with the body is synced if the policy requires it. On an error the body is stored."""
    origin.behaviour = o.ok(LARGE[:2000])
    before = await start(sink="warc", worker_id="before")
    first = await before.one(origin.url("/1"))
    await before.stop()
    inode = (before.out / str(first.path)).stat().st_ino
    synced: list[int] = []
    fdatasync, failing = os.fdatasync, [False]

    def counted(file: int) -> None:
        synced.append(os.fstat(file).st_ino)
        if failing[0] and synced[-1] == inode:
            raise OSError(errno.EIO, "Input/output error")
        fdatasync(file)

    monkeypatch.setattr(os, "fdatasync", counted)
    after = await start(sink="warc", worker_id="after", policy={"durability": durability})
    second = await after.one(origin.url("/2"))
    assert inode in synced
    failing[0] = True
    third = await after.one(origin.url("/3"))

    assert (second.path, second.offset) == (first.path, first.offset)
    assert record_of(after.out, third).payload == LARGE[:2000]
    assert third.path != first.path
