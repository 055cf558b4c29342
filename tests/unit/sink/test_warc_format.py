"""The form of a WARC record for any exchange, and the end of a segment's complete records."""

import base64
import hashlib
from uuid import RFC_4122, UUID

from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.http.wire import Wire
from fetchfleet.worker.sink.warc import record_format
from fetchfleet.worker.sink.warc.record_format import END, OriginalRecord, RecordedExchange
from tests.support.warc import read

ID, OTHER = "urn:uuid:00000000-0000-4000-8000-000000000001", "urn:uuid:00000000-0000-4000-8000-000000000002"
DATE = "2026-01-02T03:04:05.000006Z"

TOKENS = st.text("abcXYZ-_!7", min_size=1, max_size=12).map(str.encode)
VALUES = st.binary(max_size=30).map(lambda raw: bytes(c for c in raw if c >= 32 and c != 127).strip())
HEADERS = st.lists(st.tuples(TOKENS, VALUES), max_size=6)
BODIES = st.one_of(
    st.binary(max_size=300), st.just(END + record_format.VERSION + b"Content-Length: 3\r\n\r\n")
)


def sent_of(
    headers: list[tuple[bytes, bytes]], version: str = "HTTP/1.1", **fields: object
) -> RecordedExchange:
    """Return an exchange with these fields in both directions."""
    wire = Wire("http://h/p?q", "POST", b"/p?q", headers, version, 200, b"OK", headers, "192.0.2.1")
    return RecordedExchange(wire, "0123456789abcdef-00000007", DATE, **fields)  # type: ignore[arg-type]


def both(sent: RecordedExchange, body: bytes) -> bytes:
    """Return the records of an exchange."""
    head = record_format.response_head(sent.wire)
    digest = record_format.digest_text(hashlib.sha256(body).digest())
    response = record_format.response(sent, (ID, OTHER), head, digest, len(body))
    return record_format.request(sent, OTHER, ID) + response + body + END


@given(HEADERS, BODIES, BODIES)
def test_warcio_reads_every_record_and_confirms_its_digests(
    headers: list[tuple[bytes, bytes]], asked: bytes, body: bytes
) -> None:
    """The bodies look like records, and the fields have arbitrary bytes."""
    [request, response] = read(both(sent_of(headers, request_body=asked), body))

    assert (request.kind, request.payload) == ("request", asked)
    assert (response.kind, response.payload) == ("response", body)
    assert response.field("WARC-Payload-Digest") == record_format.digest_text(hashlib.sha256(body).digest())


@given(HEADERS)
def test_a_revisit_record_names_the_record_with_the_body(headers: list[tuple[bytes, bytes]]) -> None:
    """Its block is the head of the response."""
    sent = sent_of(headers)
    original = OriginalRecord("warc/a.warc", 5, 10, f"<{OTHER}>", "http://h/first", "2025-01-01T00:00:00Z")
    head, digest = record_format.response_head(sent.wire), record_format.digest_text(bytes(32))

    [revisit] = read(record_format.revisit(sent, (ID, OTHER), head, digest, original))

    assert (revisit.kind, revisit.payload) == ("revisit", b"")
    assert revisit.field("WARC-Refers-To") == f"<{OTHER}>"
    assert revisit.field("WARC-Refers-To-Target-URI") == "http://h/first"
    assert revisit.field("WARC-Refers-To-Date") == "2025-01-01T00:00:00Z"
    assert revisit.field("WARC-Payload-Digest") == digest


@given(st.binary(min_size=10, max_size=16))
def test_ids_are_distinct_uuids_with_the_random_bits_of_the_worker(random_bytes: bytes) -> None:
    """Workers with other random bits have other IDs. The version and the variant take 6 of the 80 bits."""
    ids = record_format.RecordIds(random_bytes)
    first, second = UUID(ids.next()), UUID(ids.next())

    assert [8, 8] == [first.version, second.version]
    assert [RFC_4122] * 2 == [first.variant, second.variant]
    assert UUID(bytes=first.bytes[:10] + bytes(6), version=4) == UUID(
        bytes=random_bytes[:10] + bytes(6), version=4
    )
    assert (first.bytes[:10], int(first) + 1) == (second.bytes[:10], int(second))
    assert record_format.RecordIds(random_bytes).next() == first.urn


@given(st.binary(min_size=32, max_size=32))
def test_digests_are_those_of_the_standard_library(digest: bytes) -> None:
    """They are written faster."""
    assert record_format.digest_text(digest) == "sha256:" + base64.b32encode(digest).decode()


@given(HEADERS, BODIES)
def test_a_head_is_recorded_byte_for_byte(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Order, case and bytes of every field except that of chunks."""
    head = record_format.response_head(sent_of(headers).wire)

    assert head == b"HTTP/1.1 200 OK\r\n" + b"".join(b"%s: %s\r\n" % each for each in headers) + b"\r\n"


@given(st.sampled_from([b"Transfer-Encoding", b"transfer-encoding", b"TRANSFER-ENCODING"]))
def test_the_field_of_chunks_is_kept_under_another_name(name: bytes) -> None:
    """The field keeps its place and the spelling of its name."""
    assert b"\r\nX-Orig-" + name + b": chunked\r\n" in record_format.response_head(
        sent_of([(name, b"chunked")]).wire
    )


def test_an_http2_exchange_is_written_as_http11_with_its_protocol() -> None:
    """Readers of WARC support HTTP/1 only. WARC-Protocol has the real version."""
    [_, response] = read(both(sent_of([(b"a", b"b")], "HTTP/2"), b"body"))

    assert (response.http.protocol, response.field("WARC-Protocol")) == ("HTTP/1.1", "h2")


def test_an_http10_response_keeps_its_version() -> None:
    """The version is that of the response."""
    [_, response] = read(both(sent_of([], "HTTP/1.0"), b"body"))

    assert (response.http.protocol, response.field("WARC-Protocol")) == ("HTTP/1.0", None)


def test_a_record_marks_an_omitted_request_body() -> None:
    """A sent file is not read again for the record."""
    [request, _] = read(both(sent_of([(b"Content-Length", b"7")], body_omitted=True), b""))

    assert (request.field("WARC-Truncated"), request.payload) == ("length", b"")


def test_a_digest_has_the_common_form() -> None:
    """The algorithm, and base32 (RFC 4648 §6)."""
    digest = hashlib.sha256(b"").digest()
    name, _, text = record_format.digest_text(digest).partition(":")

    assert (name, base64.b32decode(text)) == ("sha256", digest)


def test_a_segment_begins_with_a_warcinfo_record() -> None:
    """Format, software and User-Agent."""
    [info] = read(record_format.info(ID, DATE, "one-1.warc", "agent/1"))

    assert (info.kind, info.field("WARC-Filename")) == ("warcinfo", "one-1.warc")
    assert b"\r\nhttp-header-user-agent: agent/1\r\n" in info.payload
    assert info.payload.startswith(b"software: fetchfleet\r\n")


@given(HEADERS, BODIES, st.data())
def test_the_head_of_a_record_gives_its_end(
    headers: list[tuple[bytes, bytes]], body: bytes, data: st.DataObject
) -> None:
    """The function returns None for an incomplete head."""
    whole = record_format.request(sent_of(headers, request_body=body), OTHER, ID)
    found = record_format.block_bytes(whole)
    assert found is not None
    head_bytes, block_bytes = found
    cut = data.draw(st.integers(0, head_bytes - 1))

    assert head_bytes + block_bytes + len(END) == len(whole)
    assert record_format.block_bytes(whole[:cut]) is None
