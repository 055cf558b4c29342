"""What a record looks like, whatever went over the wire; and where a segment's whole records end."""

import base64
import hashlib
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.http.wire import Wire
from fetchfleet.worker.sink.warc import record_format
from fetchfleet.worker.sink.warc.record_format import END, RecordedExchange
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
    """An exchange with these fields in both directions."""
    wire = Wire("http://h/p?q", "POST", b"/p?q", headers, version, 200, b"OK", headers, "192.0.2.1")
    return RecordedExchange(wire, "0123456789abcdef-00000007", DATE, **fields)  # type: ignore[arg-type]


def both(sent: RecordedExchange, body: bytes) -> bytes:
    """The records of an exchange."""
    head = record_format.response_head(sent.wire)
    digests = hashlib.sha256(head + body).digest(), hashlib.sha256(body).digest()
    response = record_format.response(sent, (ID, OTHER), *digests, len(head) + len(body))
    return record_format.request(sent, OTHER, ID) + response + head + body + END


@given(HEADERS, BODIES, BODIES)
def test_whatever_was_said_warcio_reads_it_and_agrees_with_its_digests(
    headers: list[tuple[bytes, bytes]], asked: bytes, body: bytes
) -> None:
    """Bodies that look like records, fields of any bytes: each record ends where it ends."""
    [request, response] = read(both(sent_of(headers, body=asked), body))

    assert (request.kind, request.payload) == ("request", asked)
    assert (response.kind, response.payload) == ("response", body)
    assert response.field("WARC-Block-Digest") != response.field("WARC-Payload-Digest")


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32))
def test_ids_and_digests_are_those_of_the_standard_library(chance: bytes, digest: bytes) -> None:
    """Written faster, because each record has two of each."""
    assert record_format.record_id(chance) == UUID(bytes=chance, version=4).urn
    assert record_format.digest_text(digest) == "sha256:" + base64.b32encode(digest).decode()


@given(HEADERS, BODIES)
def test_a_head_is_as_it_was_byte_for_byte(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Order, case and bytes of every field but the one of chunks."""
    head = record_format.response_head(sent_of(headers).wire)

    assert head == b"HTTP/1.1 200 OK\r\n" + b"".join(b"%s: %s\r\n" % each for each in headers) + b"\r\n"


@given(st.sampled_from([b"Transfer-Encoding", b"transfer-encoding", b"TRANSFER-ENCODING"]))
def test_the_field_of_chunks_is_kept_under_another_name(name: bytes) -> None:
    """In its place and its own spelling."""
    assert b"\r\nX-Orig-" + name + b": chunked\r\n" in record_format.response_head(
        sent_of([(name, b"chunked")]).wire
    )


def test_what_spoke_http2_is_written_as_http11_and_says_so() -> None:
    """Readers of WARC know HTTP/1 alone; WARC-Protocol tells what it was."""
    [_, response] = read(both(sent_of([(b"a", b"b")], "HTTP/2"), b"body"))

    assert (response.http.protocol, response.field("WARC-Protocol")) == ("HTTP/1.1", "h2")


def test_what_spoke_http10_says_so() -> None:
    """The version is the answer's own."""
    [_, response] = read(both(sent_of([], "HTTP/1.0"), b"body"))

    assert (response.http.protocol, response.field("WARC-Protocol")) == ("HTTP/1.0", None)


def test_a_request_whose_body_is_not_here_says_so() -> None:
    """A file that was sent is not read again for the record."""
    [request, _] = read(both(sent_of([(b"Content-Length", b"7")], cut=True), b""))

    assert (request.field("WARC-Truncated"), request.payload) == ("length", b"")


def test_a_digest_is_written_as_others_write_it() -> None:
    """The algorithm, and base32 (RFC 4648 §6)."""
    digest = hashlib.sha256(b"").digest()
    name, _, text = record_format.digest_text(digest).partition(":")

    assert (name, base64.b32decode(text)) == ("sha256", digest)


def test_a_segment_begins_by_saying_what_it_is() -> None:
    """Format, software and the name by which hosts knew us."""
    [info] = read(record_format.info(ID, DATE, "one-1.warc", "agent/1"))

    assert (info.kind, info.field("WARC-Filename")) == ("warcinfo", "one-1.warc")
    assert b"\r\nhttp-header-user-agent: agent/1\r\n" in info.payload
    assert info.payload.startswith(b"software: fetchfleet\r\n")


@given(HEADERS, BODIES, st.data())
def test_the_head_of_a_record_tells_where_it_ends(
    headers: list[tuple[bytes, bytes]], body: bytes, data: st.DataObject
) -> None:
    """None while any of the head is wanting; the rest does not matter."""
    whole = record_format.request(sent_of(headers, body=body), OTHER, ID)
    found = record_format.block_bytes(whole)
    assert found is not None
    head_bytes, block_bytes = found
    cut = data.draw(st.integers(0, head_bytes - 1))

    assert head_bytes + block_bytes + len(END) == len(whole)
    assert record_format.block_bytes(whole[:cut]) is None
