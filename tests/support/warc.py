"""Read WARC segments with warcio and check every digest."""

import gzip
import io
from pathlib import Path
from typing import Any, NamedTuple

from cdxj_indexer.main import CDXJIndexer
from warcio.archiveiterator import ArchiveIterator

from fetchfleet import Result


class WarcRecord(NamedTuple):
    """A WARC record."""

    kind: str
    """WARC-Type, such as `response`."""
    offset: int
    head: Any
    """Fields of the record."""
    http: Any
    """Header of the HTTP message, None in other records."""
    payload: bytes

    def field(self, name: str) -> str | None:
        """Return a field of the record's header."""
        value: str | None = self.head.get_header(name)
        return value


def read(segment: bytes) -> list[WarcRecord]:
    """Return every record; fail on malformed records and wrong digests."""
    found = []
    records = ArchiveIterator(io.BytesIO(segment), check_digests="raise")
    for record in records:
        payload = record.raw_stream.read()
        assert record.digest_checker.passed is not False, record.digest_checker.problems
        head, http = record.rec_headers, record.http_headers
        found.append(WarcRecord(record.rec_type, records.get_record_offset(), head, http, payload))
        if record.rec_type == "response":
            assert record.digest_checker.passed, "a response has digests"
    return found


def segments(out: Path) -> dict[str, bytes]:
    """Return the segments of an out folder, open or closed, by the path in results."""
    found = sorted(path for path in (out / "warc").glob("*.warc*") if path.suffix != ".cdxj")
    return {f"warc/{closed(path.name)}": path.read_bytes() for path in found}


def plain(segment: bytes) -> bytes:
    """Return the records of a segment without compression."""
    return gzip.decompress(segment) if segment.startswith(b"\x1f\x8b") else segment


def judged_index(segment: Path) -> bytes:
    """Return the index of a closed segment by cdxj-indexer, sorted."""
    lines = io.StringIO()
    CDXJIndexer(lines, [str(segment)], sort=True, records="response,revisit").process_all()
    return lines.getvalue().encode()


def check_indexes(out: Path) -> None:
    """Assert that each segment is closed and has an index, and that cdxj-indexer makes the same one."""
    names = {path.name for path in (out / "warc").iterdir()}
    found = {path.removeprefix("warc/") for path in segments(out)}
    assert names == {*found, *(f"{name}.cdxj" for name in found)}
    for name in found:
        assert (out / "warc" / f"{name}.cdxj").read_bytes() == judged_index(out / "warc" / name)


def closed(name: str) -> str:
    """Return the name of a segment when it is closed."""
    return name.removesuffix(".open").removesuffix(".writing")


def record_of(out: Path, result: Result) -> WarcRecord:
    """Return the record of a result; fail if it is longer or shorter than the result's `length`."""
    assert result.path is not None, result
    assert result.offset is not None, result
    assert result.length is not None, result
    stored = segments(out)[result.path][result.offset : result.offset + result.length]
    assert len(stored) == result.length
    [record] = read(stored)
    return record
