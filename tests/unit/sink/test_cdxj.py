"""The index of segments: its keys, lines and order agree with the packages surt and cdxj-indexer."""

import hashlib
import tempfile
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from surt import surt as surt_of_the_package

from fetchfleet import Fetch
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.worker.http.wire import Wire
from fetchfleet.worker.sink.cdxj.line import capture_of, line_of, parsed
from fetchfleet.worker.sink.cdxj.sorted_lines import MAX_RUNS, SortedLines
from fetchfleet.worker.sink.cdxj.surt import surt
from fetchfleet.worker.sink.warc import record_format
from fetchfleet.worker.sink.warc.compression import member
from fetchfleet.worker.sink.warc.record_format import END, OriginalRecord, RecordedExchange
from tests.support.warc import judged_index

HOST_NAMES = (
    "example.com www.Example.com wWw12.a.b:443 a 127.0.0.1:81 10.1 0177.0.0.1 [::1]:99 bücher.example a..b"
    " a.b. h:80 h:443 h:8080 user:pw@h 1.2.3.4.5 4294967295"
)
SHORT_PIECES = (
    "a B www. .com .. . ... .a / // /../ /./ ? & = :80 @ é ü \\ %41 %25 %2541 %2F %0a %ff"
    ' + " < { ^ | ` ~ ; * ('
)
A24, A32 = "a" * 24, "a" * 32
SESSIONS = (
    f"sid={A32} jsessionid={A32} PHPSESSID={A32} cfid=1&cftoken=2 ASPSESSIONIDabcdefgh={A24} (s({A24}))/"
    f" ({A24})/ x.aspx"
)
HOSTS = st.sampled_from(HOST_NAMES.split())
PIECES = st.sampled_from([" ", *SHORT_PIECES.split(), *SESSIONS.split()])
TAILS = st.lists(PIECES, max_size=10).map("".join)
URLS = st.builds("{}://{}/{}{}".format, st.sampled_from(["http", "https"]), HOSTS, TAILS, TAILS)

IDS = "urn:uuid:00000000-0000-4000-8000-000000000001", "urn:uuid:00000000-0000-4000-8000-000000000002"
DIGEST = record_format.digest_text(hashlib.sha256(b"body").digest())
TYPES = b"text/html; charset=x", b"", b";x", b"a b", b"\xe4/\xff", b"\xc3\xa4", b"\xa0a/b\x85"
MIMES = st.sampled_from([None, *TYPES])


@given(URLS)
def test_keys_are_those_of_the_package_surt(url: str) -> None:
    """For every URL that a fetch may have, in its canonical form."""
    try:
        canonical = Fetch(url=url).url
    except InvalidFetchError:
        return

    assert surt(canonical) == surt_of_the_package(canonical)


def test_a_key_groups_the_variants_of_a_url() -> None:
    """Case, www, the order of the query, default ports and session IDs do not matter."""
    urls = [
        "http://www.h.example/A/?b=2&a=1",
        "https://H.example:443/a?a=1&B=2",
        "http://h.example/a?b=2&a=1",
    ]

    assert {"example,h)/a?a=1&b=2"} == {surt(url) for url in urls}
    assert surt("mailto:someone") == "mailto:someone"


def exchange_of(url: str, mime: bytes | None, status: int) -> RecordedExchange:
    """Return an exchange with two fields of the type, or with one if `mime` is None."""
    headers = [
        (b"X", b"1"),
        *([(b"content-TYPE", mime)] if mime is not None else []),
        (b"Content-Type", b"2nd"),
    ]
    wire = Wire(url, "GET", b"/", [], "HTTP/1.1", status, b"A  B", headers, "192.0.2.1")
    return RecordedExchange(wire, "0123456789abcdef-00000007", "2026-01-02T03:04:05.000006Z")


def records(exchange: RecordedExchange) -> list[bytes]:
    """Return a warcinfo, a request, a response and a revisit record."""
    head, url = record_format.response_head(exchange.wire), exchange.wire.url
    original = OriginalRecord("warc/a.warc", 5, 10, f"<{IDS[0]}>", url, "2025-01-01T00:00:00Z")
    return [
        record_format.info(IDS[0], "2026-01-02T03:04:05Z", "a.warc", "agent/1"),
        record_format.request(exchange, IDS[1], IDS[0]),
        record_format.response(exchange, IDS, head, DIGEST, 4) + b"body" + END,
        record_format.revisit(exchange, IDS, head, DIGEST, original),
    ]


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
@given(URLS, MIMES, st.integers(200, 299))
def test_lines_are_those_of_cdxj_indexer(name: str, url: str, mime: bytes | None, status: int) -> None:
    """For a response and a revisit record, by the record and by its exchange; other records have no line."""
    try:
        exchange = exchange_of(Fetch(url=url).url, mime, status)
    except InvalidFetchError:
        return
    found = records(exchange)
    stored, lines, offset = b"", [], 0
    captures = [capture_of(record) for record in found]
    for record, capture in zip(found, captures, strict=True):
        in_segment = member([record]) if name.endswith(".gz") else record
        lines.append(None if capture is None else line_of(capture, offset, len(in_segment), name))
        stored += in_segment
        offset += len(in_segment)
    with tempfile.TemporaryDirectory() as folder:
        segment = Path(folder) / name
        segment.write_bytes(stored)
        judged = judged_index(segment)

    assert captures == [None, None, *(exchange.capture(DIGEST, revisit=one) for one in (False, True))]
    assert b"".join(sorted(line for line in lines if line is not None)) == judged
    first = parsed(lines[2] or b"")
    assert first is not None
    assert first.record_bytes == len(member([found[2]]) if name.endswith(".gz") else found[2])


@given(st.lists(st.binary(max_size=8).map(lambda line: line.replace(b"\n", b"") + b"\n"), max_size=300))
def test_lines_are_sorted_in_bounded_memory(lines: list[bytes]) -> None:
    """Runs are merged once there are many of them. No run is lost, and no line."""
    opened: list[BytesIO] = []

    def new_file() -> BytesIO:
        opened.append(BytesIO())
        return opened[-1]

    found = SortedLines(new_file, memory_bytes=3)
    try:
        for line in lines:
            found.add(line)
            assert sum(not file.closed for file in opened) <= MAX_RUNS
        assert list(found) == sorted(lines)
    finally:
        found.close()
    assert all(file.closed for file in opened)


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"a b\n", b"a b {", b"a b []", b'a b {"url": 1}', b"\xff \xff \xff"]
)
def test_a_malformed_line_is_ignored(line: bytes) -> None:
    """Indexes are files that anyone may have changed."""
    assert parsed(line) is None
