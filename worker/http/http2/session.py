"""What one HTTP/2 connection is at, without its socket: h2, the streams on it, and their windows.

The connection's window is given back as bytes come, a stream's as they are taken. So one whose taker
stands still stops itself and no other, and memory is bounded by a window for each.
"""

from collections.abc import Callable, Iterable

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import h2.stream
import httpcore2
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from fetchfleet.worker.http.http2.frames import (
    Data,
    FrameError,
    Frames,
    GoAway,
    end_of,
    window_update,
)
from fetchfleet.worker.http.http2.headers import BadHeadError, Field, Head, answered
from fetchfleet.worker.http.http2.stream import RefusedError, Stream

STREAM_WINDOW_BYTES = 512 * 1024
CONNECTION_WINDOW_BYTES = 16 << 20
MAX_STREAMS = 1000
"""As many as a policy lets run at once."""
MAX_HEAD_BYTES = 64 * 1024
MAX_UNSENT_BYTES = 512 * 1024
"""Whoever asks for more answers than that (to pings, to settings) without reading them floods us."""

_CREDIT_BYTES = 1 << 20
_CONFIG = h2.config.H2Configuration(
    header_encoding=None, validate_inbound_headers=False, normalize_inbound_headers=False
)


class Session:
    """The state of one connection; whatever it has to say is in `output`."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.draining = False
        """Whether it takes no more streams."""
        self._frames = Frames()
        self._h2 = h2.connection.H2Connection(config=_CONFIG)
        self.settled = False
        """Whether the host has said how many streams it takes."""
        self._owed_bytes = 0
        self._out = bytearray()
        self._begin()

    @property
    def room(self) -> int:
        """How many more streams it takes now; one until the host has said how many."""
        if self.draining:
            return 0
        most = min(self._h2.remote_settings.max_concurrent_streams, MAX_STREAMS) if self.settled else 1
        return max(0, most - len(self.streams))

    @property
    def unsent_bytes(self) -> int:
        """How much waits to be sent."""
        return len(self._out)

    def open(self, fields: list[Field], method: bytes, *, whole: bool) -> Stream:
        """A request goes out, with nothing to follow if it is whole; there is room for it.

        Raises RefusedError where the connection can have no more, or httpcore2.LocalProtocolError.
        """
        try:
            stream_id = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream_id, fields, end_stream=whole)
        except (h2.exceptions.NoAvailableStreamIDError, h2.exceptions.TooManyStreamsError) as error:
            self.draining = True
            raise RefusedError(str(error)) from error
        except h2.exceptions.ProtocolError as error:
            self.draining = True  # half of the head may be in the compressor's memory
            raise httpcore2.LocalProtocolError(str(error)) from error
        _unchecked(self._h2.streams[stream_id])
        stream = self.streams[stream_id] = Stream(stream_id, method, STREAM_WINDOW_BYTES)
        self._said()
        return stream

    def send_room_bytes(self, stream: Stream) -> int:
        """How much of its request's body may be sent at once."""
        if stream.over or self._closed(stream):
            return 0
        window = self._h2.local_flow_control_window(stream.id)
        return max(0, min(window, self._h2.max_outbound_frame_size))

    def send(self, stream: Stream, data: bytes | memoryview, *, last: bool = False) -> None:
        """A piece of its request's body; there is room for it."""
        if not self._closed(stream):
            self._h2.send_data(stream.id, data, end_stream=last)
            self._frames.moved()
            self._said()

    def taken(self, stream: Stream, size_bytes: int) -> None:
        """So much of its answer's body needs no memory any more."""
        stream.owed_bytes += size_bytes
        if stream.owed_bytes >= STREAM_WINDOW_BYTES // 2 and not stream.over and not self._closed(stream):
            self._out += window_update(stream.id, stream.credit())

    def drop(self, stream: Stream) -> None:
        """Nobody wants the rest of it, if there is any."""
        if self.streams.pop(stream.id, None) is not None:
            self._reset(stream, ErrorCodes.CANCEL)

    def receive(self, data: bytes) -> None:
        """What the host says; raises httpcore2.RemoteProtocolError, after which there is no more to it."""
        try:
            for frame in self._frames.feed(data):
                match frame:
                    case Data():
                        self._data_came(frame)
                    case GoAway():
                        self._going(frame)
                    case _:
                        self._heard(frame)
        except FrameError as error:
            raise httpcore2.RemoteProtocolError(str(error)) from error
        finally:
            self._said()
        if self._owed_bytes >= _CREDIT_BYTES:
            self._out += window_update(0, self._owed_bytes)
            self._owed_bytes = 0
        if self.unsent_bytes > MAX_UNSENT_BYTES:
            raise httpcore2.RemoteProtocolError("it asks for more answers than it reads")

    def fail(self, error: Callable[[Stream], Exception]) -> None:
        """The connection is over, and so are its streams."""
        self.draining = True
        for stream in self.streams.values():
            stream.fail(error(stream))

    def part(self) -> None:
        """Say that we go (RFC 9113 §6.8)."""
        self._h2.close_connection()
        self._said()

    def output(self) -> bytes:
        """All that waits to be sent; it waits no longer."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def _begin(self) -> None:
        settings = {
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
            SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEAD_BYTES,
        }
        # Put in place before it begins: h2 would else send its defaults, and then these.
        self._h2.local_settings = h2.settings.Settings(client=True, initial_values=settings)
        del self._h2.local_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL]
        self._h2.initiate_connection()
        self._said()
        self._out += window_update(0, CONNECTION_WINDOW_BYTES - 65_535)

    def _said(self) -> None:
        self._out += self._h2.data_to_send()

    def _heard(self, frames: bytes) -> None:
        try:
            events = self._h2.receive_data(frames)
        except Exception as error:  # h2 lets pass what its own parsers say of garbage
            raise httpcore2.RemoteProtocolError(f"no HTTP/2: {error}") from error
        for event in events:
            self._happened(event)

    def _data_came(self, frame: Data) -> None:
        """Also what nobody wants any more has taken its part of the connection's window."""
        self._owed_bytes += frame.size_bytes
        stream = self.streams.get(frame.stream_id)
        if stream is None or stream.over:
            if frame.stream_id > self._h2.highest_outbound_stream_id:
                raise FrameError("a body that nobody asked for")
            return
        try:
            stream.data_came(frame.payload, frame.size_bytes)
        except httpcore2.RemoteProtocolError as error:
            self._its_own_fault(stream, error)
        else:
            if frame.last:
                self._heard(end_of(stream.id))

    def _happened(self, event: h2.events.Event) -> None:
        stream_id: int | None = getattr(event, "stream_id", None)
        self.settled = self.settled or isinstance(event, h2.events.RemoteSettingsChanged)
        if not stream_id:  # the windows of all may have grown
            for each in self.streams.values():
                each.changed.set()
            return
        stream = self.streams.get(stream_id)
        if stream is None or stream.over:
            return
        try:
            self._came(stream, event)
        except httpcore2.RemoteProtocolError as error:
            self._its_own_fault(stream, error)

    def _came(self, stream: Stream, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived():
                self._frames.moved()
                stream.head_came(_head(event.headers or (), stream.method))
            case h2.events.InformationalResponseReceived():
                stream.interim_came()
            case h2.events.StreamEnded():
                stream.end_came()
            case h2.events.StreamReset(error_code=code):
                stream.fail(_reset_by_host(stream, code))
            case h2.events.WindowUpdated():
                stream.changed.set()
            case _:  # trailers, and what is none of ours
                pass

    def _its_own_fault(self, stream: Stream, error: Exception) -> None:
        """An answer that breaks the protocol ends alone (RFC 9113 §8.1.1)."""
        stream.fail(error)
        self._reset(stream, ErrorCodes.PROTOCOL_ERROR)

    def _going(self, goaway: GoAway) -> None:
        self.draining = True
        for stream in self.streams.values():
            if stream.id > goaway.last_stream_id:
                stream.fail(_refused(stream, f"gone, with code {goaway.code}"))

    def _reset(self, stream: Stream, code: ErrorCodes) -> None:
        if not self._closed(stream):
            self._h2.reset_stream(stream.id, code)
            self._said()

    def _closed(self, stream: Stream) -> bool:
        over = self._h2.state_machine.state is h2.connection.ConnectionState.CLOSED
        found = self._h2.streams.get(stream.id)
        return over or found is None or found.closed


def _head(fields: Iterable[Field], method: bytes) -> Head:
    try:
        return answered(fields, method)
    except BadHeadError as error:
        raise httpcore2.RemoteProtocolError(str(error)) from error


def _unchecked(stream: h2.stream.H2Stream) -> None:
    """Let h2 leave the length of this answer to us.

    It would end the whole connection for one that is wrong, where RFC 9113 §8.1.1 ends the
    stream; and it shows no way to say so.
    """
    stream._initialize_content_length = lambda _: None  # type: ignore[assignment,method-assign]  # noqa: SLF001


def _reset_by_host(stream: Stream, code: ErrorCodes | int | None) -> Exception:
    if code == ErrorCodes.REFUSED_STREAM:
        return _refused(stream, "refused")
    said = f"the host reset the stream: {getattr(code, 'name', code)}"
    if code == ErrorCodes.PROTOCOL_ERROR:
        return httpcore2.RemoteProtocolError(said)
    return httpcore2.ReadError(said)


def _refused(stream: Stream, how: str) -> Exception:
    """Whoever has begun to answer has begun the request, whatever it says then."""
    return httpcore2.ReadError(how) if stream.heard else RefusedError(how)
