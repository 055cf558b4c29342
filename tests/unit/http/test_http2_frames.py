"""HTTP/2 without a socket: frames, heads, and flow-control windows."""

from collections.abc import Iterable

import h2.config
import h2.connection
import h2.events
import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, PingFrame, SettingsFrame, WindowUpdateFrame
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.errors import ReadError, RemoteProtocolError
from fetchfleet.worker.http.http2.frames import (
    MAX_IDLE_FRAMES,
    Data,
    FrameError,
    FrameReader,
    GoAway,
    end_of,
    window_update,
)
from fetchfleet.worker.http.http2.headers import MalformedHeadersError, parse_response, request_fields
from fetchfleet.worker.http.http2.session import (
    CONNECTION_WINDOW_BYTES,
    MAX_UNSENT_BYTES,
    STREAM_WINDOW_BYTES,
    Session,
)
from fetchfleet.worker.http.http2.stream import RefusedError, Stream
from fetchfleet.worker.http.wire import Header

STREAMS = st.integers(1, 2**31 - 1)
PADDED = st.builds(
    lambda stream, data, pad, last: DataFrame(
        stream, data, pad_length=pad, flags=["PADDED", *(["END_STREAM"] if last else [])]
    ),
    STREAMS,
    st.binary(max_size=300),
    st.integers(0, 255),
    st.booleans(),
)
PLAIN = st.builds(DataFrame, STREAMS, st.binary(max_size=300))
GOING = st.builds(
    lambda last, code, more: GoAwayFrame(0, last_stream_id=last, error_code=code, additional_data=more),
    st.integers(0, 2**31 - 1),
    st.integers(0, 13),
    st.binary(max_size=50),
)
OTHERS = st.one_of(
    st.builds(lambda data: PingFrame(0, data), st.binary(min_size=8, max_size=8)),
    st.builds(WindowUpdateFrame, STREAMS, st.integers(1, 2**31 - 1)),
)
GET = [(b":method", b"GET"), (b":authority", b"a"), (b":scheme", b"https"), (b":path", b"/")]


def expected(frames: Iterable[Frame]) -> list[Data | GoAway | bytes]:
    """Return the expected events, with other frames merged."""
    found: list[Data | GoAway | bytes] = []
    for frame in frames:
        match frame:
            case DataFrame():
                padding = frame.pad_length + 1 if "PADDED" in frame.flags else 0
                size = len(frame.data) + padding
                found.append(Data(frame.stream_id, bytes(frame.data), size, "END_STREAM" in frame.flags))
            case GoAwayFrame():
                found.append(GoAway(frame.last_stream_id, frame.error_code))
            case _:
                found.append(frame.serialize())
    return found


def joined(found: Iterable[Data | GoAway | bytes]) -> list[Data | GoAway | bytes]:
    """Return the same with adjacent bytes merged."""
    together: list[Data | GoAway | bytes] = []
    for each in found:
        if together and isinstance(each, bytes) and isinstance(together[-1], bytes):
            together[-1] += each
        else:
            together.append(each)
    return together


@given(st.lists(st.one_of(PADDED, PLAIN, GOING, OTHERS), max_size=12), st.data())
def test_frames_are_read_in_any_pieces(frames: list[Frame], draw: st.DataObject) -> None:
    """They are read in order, complete, each once."""
    wire = b"".join(frame.serialize() for frame in frames)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    reader, found = FrameReader(), []
    for since, until in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        found += reader.feed(wire[since:until])

    assert joined(found) == joined(expected(frames))


@given(st.binary(max_size=400), st.integers(1, 50))
def test_garbage_is_frames_or_an_error(wire: bytes, step: int) -> None:
    """No other error is raised, and no read hangs."""
    reader = FrameReader()
    try:
        for at in range(0, len(wire), step):
            reader.feed(wire[at : at + step])
    except FrameError:
        pass


def test_frames_without_effect_are_counted_until_one_has_an_effect() -> None:
    """A piece of a body, or a head, resets the count."""
    ping, reader = PingFrame(0, b"12345678").serialize(), FrameReader()
    for _ in range(3):
        reader.feed(ping * MAX_IDLE_FRAMES)
        reader.feed(DataFrame(1, b"x").serialize())
    reader.feed(ping * MAX_IDLE_FRAMES)
    reader.reset_idle()
    with pytest.raises(FrameError):
        reader.feed(ping * (MAX_IDLE_FRAMES + 1))


@pytest.mark.parametrize(
    "wire",
    [
        b"\x00\x40\x01\x00\x00\x00\x00\x00\x01" + b"x" * 0x4001,
        b"\x00\x00\x04\x07\x00\x00\x00\x00\x00\x00\x00\x00\x01",
        b"\x00\x00\x02\x00\x08\x00\x00\x00\x01\x02\x00",
        b"\x00\x00\x00\x00\x08\x00\x00\x00\x01",
    ],
    ids=["too large", "truncated GOAWAY", "all padding", "padding of nothing"],
)
def test_invalid_frames_are_refused(wire: bytes) -> None:
    """RFC 9113 §4.2, §6.1 and §6.8 define them."""
    with pytest.raises(FrameError):
        FrameReader().feed(wire)


@given(STREAMS, st.integers(1, 2**31 - 1))
def test_written_frames_equal_those_of_hyperframe(stream: int, by: int) -> None:
    """It holds for each type that the worker writes."""
    assert window_update(stream, by) == WindowUpdateFrame(stream, by).serialize()
    assert end_of(stream) == DataFrame(stream, b"", flags=["END_STREAM"]).serialize()


def test_a_request_omits_connection_fields() -> None:
    """Host becomes the authority. Names are in lower case."""
    fields = [(b"Host", b"a:1"), (b"Accept", b"*/*"), (b"Connection", b"close"), (b"TE", b"trailers")]

    assert request_fields("GET", "https", b"/x", fields) == [
        (b":method", b"GET"),
        (b":authority", b"a:1"),
        (b":scheme", b"https"),
        (b":path", b"/x"),
        (b"accept", b"*/*"),
    ]


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ([], None),
        ([(b"content-length", b"5")], 5),
        ([(b"content-length", b"5"), (b"content-length", b"5")], 5),
        ([(b"content-length", b"5, 5")], 5),
    ],
)
def test_a_repeated_length_is_one_length(fields: list[Header], length: int | None) -> None:
    """It is passed on once."""
    head = parse_response([(b":status", b"200"), *fields], "GET")

    assert head.length_bytes == length
    assert len(head.fields) == (length is not None)


@pytest.mark.parametrize(("status", "method"), [(b"204", "GET"), (b"304", "GET"), (b"200", "HEAD")])
def test_some_responses_have_no_body(status: bytes, method: str) -> None:
    """The status or the request method excludes a body (RFC 9110 §6.4.1)."""
    assert parse_response([(b":status", status), (b"content-length", b"5")], method).length_bytes == 0


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b":status", b"200"), (b":status", b"200")],
        [(b":status", b"20")],
        [(b":status", b"099")],
        [(b":status", b"two")],
        [(b"x", b"y"), (b":status", b"200")],
        [(b":status", b"200"), (b":path", b"/")],
        [(b":status", b"200"), (b"X", b"y")],
        [(b":status", b"200"), (b"", b"y")],
        [(b":status", b"200"), (b"x y", b"z")],
        [(b":status", b"200"), (b"x", b"a\r\nb: c")],
        [(b":status", b"200"), (b"x", b"a\0")],
        [(b":status", b"200"), (b"transfer-encoding", b"chunked")],
        [(b":status", b"200"), (b"content-length", b"1"), (b"content-length", b"2")],
        [(b":status", b"200"), (b"content-length", b"1, 2")],
        [(b":status", b"200"), (b"content-length", b"-1")],
        [(b":status", b"200"), (b"content-length", b"1" + b"0" * 30)],
    ],
)
def test_an_invalid_head_is_refused(fields: list[Header]) -> None:
    """RFC 9113 §8.2 and §8.3."""
    with pytest.raises(MalformedHeadersError):
        parse_response(fields, "GET")


class Host:
    """The other end of a session, played by h2."""

    def __init__(self) -> None:
        self.session = Session()
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.h2.initiate_connection()
        self.exchange_bytes()

    def exchange_bytes(self) -> list[h2.events.Event]:
        """Exchange bytes in both directions; return the events at the host."""
        events = self.h2.receive_data(self.session.output())
        self.session.receive(self.h2.data_to_send())
        return events + self.h2.receive_data(self.session.output())

    def request_fields(self) -> Stream:
        """Send a request and its response head; return the fields of the request."""
        stream = self.session.open(GET, "GET", has_body=False)
        self.exchange_bytes()
        self.h2.send_headers(stream.id, [(":status", "200")])
        self.exchange_bytes()
        return stream

    def window(self, stream: Stream) -> int:
        """Return the window that the host has left."""
        return self.h2.local_flow_control_window(stream.id)

    def sends(self, stream: Stream, size_bytes: int) -> None:
        """Send that many bytes of a body."""
        while size_bytes:
            piece = min(size_bytes, 16_000)
            self.h2.send_data(stream.id, b"x" * piece)
            size_bytes -= piece
        self.exchange_bytes()


def test_an_unread_body_stops_its_own_stream_only() -> None:
    """The connection's window is returned as bytes arrive, the stream's as they are read."""
    host = Host()
    still, moving = host.request_fields(), host.request_fields()
    host.sends(still, STREAM_WINDOW_BYTES)

    assert host.window(still) == 0
    for _ in range(2 * CONNECTION_WINDOW_BYTES // STREAM_WINDOW_BYTES):
        host.sends(moving, host.window(moving))
        host.session.return_window(moving, len(moving.take()))
        host.exchange_bytes()
    assert host.window(still) == 0
    assert host.window(moving) == STREAM_WINDOW_BYTES


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 400_000), st.sampled_from(["take", "leave", "drop"])),
        max_size=25,
    )
)
def test_no_window_leaks(steps: list[tuple[int, int, str]]) -> None:
    """Windows are complete again after any reads and drops, except for amounts not yet worth a frame."""
    host = Host()
    streams = [host.request_fields() for _ in range(4)]
    for which, size_bytes, then in steps:
        stream = streams[which]
        host.sends(stream, min(size_bytes, host.window(stream)))
        if then == "drop":
            host.session.drop(stream)
            streams[which] = host.request_fields()
        elif then == "take":
            host.session.return_window(stream, len(stream.take()))
        host.exchange_bytes()
    for stream in streams:
        host.session.return_window(stream, len(stream.take()))
    host.exchange_bytes()

    assert all(host.window(stream) > STREAM_WINDOW_BYTES // 2 for stream in streams)
    assert host.h2.outbound_flow_control_window > CONNECTION_WINDOW_BYTES // 2


def test_bytes_of_a_dropped_stream_are_acknowledged() -> None:
    """They were in flight. Their part of the connection's window is returned."""
    host = Host()
    for _ in range(3 * CONNECTION_WINDOW_BYTES // STREAM_WINDOW_BYTES):
        stream = host.request_fields()
        host.session.drop(stream)
        unheard = host.session.output()
        for _ in range(STREAM_WINDOW_BYTES // 16_000):
            host.h2.send_data(stream.id, b"x" * 16_000)
        host.session.receive(host.h2.data_to_send())
        host.h2.receive_data(unheard)
        host.exchange_bytes()

    assert host.h2.outbound_flow_control_window > CONNECTION_WINDOW_BYTES // 2
    assert not host.session.streams


def test_exceeding_its_window_resets_the_stream() -> None:
    """Memory stays bounded."""
    host = Host()
    stream, other = host.request_fields(), host.request_fields()
    wire = DataFrame(stream.id, b"x" * 16_000).serialize() * (1 + STREAM_WINDOW_BYTES // 16_000)
    host.session.receive(wire)

    assert isinstance(stream.error, RemoteProtocolError)
    assert other.error is None
    [reset] = [event for event in host.exchange_bytes() if isinstance(event, h2.events.StreamReset)]
    assert reset.stream_id == stream.id


def test_unread_acknowledgements_end_the_connection() -> None:
    """Replies to its settings and pings would fill the memory."""
    session = Host().session
    wire = (SettingsFrame(0, {0x1: 4096}).serialize() + DataFrame(1, b"x").serialize()) * 100
    session.open(GET, "GET", has_body=False)

    def flood() -> None:
        for _ in range(MAX_UNSENT_BYTES):
            session.receive(wire)

    with pytest.raises(RemoteProtocolError, match="without reading the replies"):
        flood()


def test_after_goaway_higher_streams_were_not_processed() -> None:
    """Lower ones continue. No others are accepted."""
    host = Host()
    streams = [host.session.open(GET, "GET", has_body=False) for _ in range(3)]
    host.session.receive(GoAwayFrame(0, last_stream_id=3, error_code=0).serialize())

    assert [type(stream.error) for stream in streams] == [type(None), type(None), RefusedError]
    assert host.session.free_streams == 0


def test_a_started_response_counts_as_processed() -> None:
    """A refusal after a head breaks the response, and does not allow a repeat."""
    host = Host()
    refused, above = host.request_fields(), host.request_fields()
    host.h2.reset_stream(refused.id, ErrorCodes.REFUSED_STREAM)
    host.exchange_bytes()
    host.session.receive(GoAwayFrame(0, last_stream_id=0, error_code=0).serialize())

    assert [type(stream.error) for stream in (refused, above)] == [ReadError] * 2


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_read_or_refused(wire: bytes) -> None:
    """Garbage raises one kind of error only."""
    session = Host().session
    session.open(GET, "GET", has_body=False)
    try:
        session.receive(wire)
    except RemoteProtocolError:
        session.fail(lambda _: RemoteProtocolError("over"))
        session.send_goaway()
