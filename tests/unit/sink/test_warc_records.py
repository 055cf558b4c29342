"""The complete records of a segment, for any point of death of its writer."""

import gzip
import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.sink.warc import record_format
from fetchfleet.worker.sink.warc.compression import READ_BYTES, member, member_pieces
from fetchfleet.worker.sink.warc.record_format import END
from fetchfleet.worker.sink.warc.records import FoundRecord, complete_records

ID = "urn:uuid:00000000-0000-4000-8000-000000000001"

BLOCKS = st.lists(
    st.one_of(st.binary(max_size=40), st.just(END + record_format.VERSION + END)), min_size=1, max_size=4
)

both = pytest.mark.parametrize("stored", [member, b"".join], ids=["gzip", "none"])


def record(block: bytes) -> bytes:
    """Return a record with this block."""
    head = (
        f"WARC/1.1\r\nWARC-Type: resource\r\nWARC-Record-ID: <{ID}>\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + END


def found_in(segment: bytes) -> list[FoundRecord]:
    """Return the complete records of a segment."""
    file = os.memfd_create("segment")
    try:
        os.write(file, segment)
        return list(complete_records(file))
    finally:
        os.close(file)


@both
@given(blocks=BLOCKS, rest=st.binary(max_size=30))
def test_a_segment_cut_at_any_byte_keeps_its_whole_records(
    stored: Callable[[list[bytes]], bytes], blocks: list[bytes], rest: bytes
) -> None:
    """No truncated record stays, no whole record is lost, and bytes after the cut change neither."""
    records = [stored([record(block)]) for block in blocks]
    whole = b"".join(records)
    ends = [sum(map(len, records[: n + 1])) for n in range(len(records))]

    for size in range(len(whole) + 1):
        found = found_in(whole[:size])
        assert [one.offset + one.length for one in found] == [end for end in ends if end <= size]
        assert [one.start for one in found] == [record(block) for block in blocks[: len(found)]]
    damaged = found_in(whole[:-1] + rest)
    assert len(damaged) >= len(records) - 1


@given(st.binary(min_size=1, max_size=60), st.data())
def test_a_member_with_a_wrong_byte_ends_the_segment(block: bytes, data: st.DataObject) -> None:
    """The checksum of gzip is compared. Bytes of the member's header carry no data."""
    stored = bytearray(member([record(block)]))
    at = data.draw(st.integers(10, len(stored) - 1))
    stored[at] ^= data.draw(st.integers(1, 255))

    assert [one.start for one in found_in(bytes(stored))] in ([], [record(block)])


@pytest.mark.parametrize(
    "block",
    [b"", b"x" * (40 * READ_BYTES + 3), os.urandom(3 * READ_BYTES + 1), os.urandom(16 * 1024)],
    ids=["empty", "a bomb", "random", "one read"],
)
@both
def test_a_record_of_any_size_is_found(stored: Callable[[list[bytes]], bytes], block: bytes) -> None:
    """The start of a large record is returned, not all of it."""
    segment = stored([record(b"first")]) + stored([record(block)]) + stored([record(b"last")])

    first, large, last = found_in(segment)

    assert (first.start, last.start) == (record(b"first"), record(b"last"))
    assert record(block).startswith(large.start)
    assert large.start.startswith(record(block)[:1000])
    assert len(large.start) <= 128 * 1024
    assert (large.offset, last.offset) == (first.length, first.length + large.length)


@both
def test_other_bytes_are_no_records(stored: Callable[[list[bytes]], bytes]) -> None:
    """A gzip member with anything else than one whole record is malformed."""
    whole = record(b"1")

    for other in (b"", b"text", whole[:-1], whole[:-4] + b"abcd", whole.replace(b"1.1", b"2.0")):
        assert found_in(stored([other])) == []
    assert found_in(gzip.compress(whole + whole)) == []


@pytest.mark.parametrize("size", [0, 1, READ_BYTES, 2 * READ_BYTES + 1])
def test_a_file_is_compressed_in_pieces(size: int) -> None:
    """Each piece is small, and together they are one member."""
    body = os.urandom(size)
    file = os.memfd_create("body")
    try:
        os.write(file, body + b"more")
        pieces = list(member_pieces(b"head", file, size, END))
    finally:
        os.close(file)

    assert gzip.decompress(b"".join(pieces)) == b"head" + body + END
    assert max(map(len, pieces)) <= 2 * READ_BYTES


def test_a_file_that_is_too_short_is_an_error() -> None:
    """The partial file was cut by someone else: no record is written."""
    file = os.memfd_create("body")
    try:
        with pytest.raises(OSError, match="ends after 0 of 5 bytes"):
            list(member_pieces(b"head", file, 5, END))
    finally:
        os.close(file)
