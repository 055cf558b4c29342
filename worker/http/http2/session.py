"""The state of one HTTP/2 connection, without its socket: h2, the streams, and their windows.

The connection's window is returned as bytes arrive, a stream's as they are read. A slow reader therefore
stops its own stream only, and memory is bounded by one window for each stream.
"""

from collections.abc import Callable

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from fetchfleet.worker.errors import InvalidRequestError, ReadError, RemoteProtocolError
from fetchfleet.worker.http.compat import skip_content_length_check
from fetchfleet.worker.http.http2.frames import (
    Data,
    FrameError,
    Frames,
    GoAway,
    end_of,
    window_update,
)
from fetchfleet.worker.http.http2.headers import MalformedHeadersError, parse_response
from fetchfleet.worker.http.http2.stream import RefusedError, Stream
from fetchfleet.worker.http.wire import Header

STREAM_WINDOW_BYTES = 512 * 1024
CONNECTION_WINDOW_BYTES = 16 << 20
MAX_STREAMS = 1000
"""As many as a policy lets run at once."""
MAX_HEAD_BYTES = 64 * 1024
MAX_UNSENT_BYTES = 512 * 1024
"""A host that requests more replies (to pings, to settings) than this without reading them is flooding."""

_CREDIT_BYTES = 1 << 20
_CONFIG = h2.config.H2Configuration(
    header_encoding=None, validate_inbound_headers=False, normalize_inbound_headers=False
)


class Session:
    """The state of one connection; the bytes that it has to send are in `output`."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.draining = False
        """Whether it takes no more streams."""
        self.settled = False
        """Whether the host has sent its settings, which say how many streams it takes."""
        self._frames = Frames()
        self._h2 = h2.connection.H2Connection(config=_CONFIG)
        self._owed_bytes = 0
        self._out = bytearray()
        settings = {
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
            SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEAD_BYTES,
        }
        # Replaced before the preface is sent: h2 would otherwise send its defaults first, then these.
        self._h2.local_settings = h2.settings.Settings(client=True, initial_values=settings)
        del self._h2.local_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL]
        self._h2.initiate_connection()
        self._collect()
        self._out += window_update(0, CONNECTION_WINDOW_BYTES - 65_535)

    @property
    def room(self) -> int:
        """The number of further streams that it takes now; one until the host has sent its settings."""
        if self.draining:
            return 0
        most = min(self._h2.remote_settings.max_concurrent_streams, MAX_STREAMS) if self.settled else 1
        return max(0, most - len(self.streams))

    @property
    def unsent_bytes(self) -> int:
        """The number of bytes that wait to be sent."""
        return len(self._out)

    def open(self, fields: list[Header], method: str, *, whole: bool) -> Stream:
        """Send the header section of a request; whole: no body follows. The caller has checked `room`.

        Raises RefusedError if the connection takes no more streams, or InvalidRequestError.
        """
        try:
            stream_id = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream_id, fields, end_stream=whole)
        except (h2.exceptions.NoAvailableStreamIDError, h2.exceptions.TooManyStreamsError) as error:
            self.draining = True
            raise RefusedError(str(error)) from error
        except h2.exceptions.ProtocolError as error:
            self.draining = True  # half of the headers may be in the compressor's table
            raise InvalidRequestError(str(error)) from error
        skip_content_length_check(self._h2.streams[stream_id])
        stream = self.streams[stream_id] = Stream(stream_id, method, STREAM_WINDOW_BYTES)
        self._collect()
        return stream

    def send_room_bytes(self, stream: Stream) -> int:
        """Return how much of its request body may be sent at once."""
        if stream.over or self._closed(stream):
            return 0
        window = self._h2.local_flow_control_window(stream.id)
        return max(0, min(window, self._h2.max_outbound_frame_size))

    def send(self, stream: Stream, data: bytes | memoryview, *, last: bool = False) -> None:
        """Send a piece of its request body; the caller has checked `send_room_bytes`."""
        if not self._closed(stream):
            self._h2.send_data(stream.id, data, end_stream=last)
            self._frames.progressed()
            self._collect()

    def receive(self, data: bytes) -> None:
        """Take bytes from the host; raises RemoteProtocolError, which ends the connection."""
        try:
            for frame in self._frames.feed(data):
                match frame:
                    case Data():
                        self._receive_data(frame)
                    case GoAway(last_stream_id, code):
                        self.draining = True
                        for stream in self.streams.values():
                            if stream.id > last_stream_id:
                                stream.fail(_refused(stream, f"GOAWAY with code {code}"))
                    case _:
                        self._receive_others(frame)
        except FrameError as error:
            raise RemoteProtocolError(str(error)) from error
        finally:
            self._collect()
        if self._owed_bytes >= _CREDIT_BYTES:
            self._out += window_update(0, self._owed_bytes)
            self._owed_bytes = 0
        if self.unsent_bytes > MAX_UNSENT_BYTES:
            raise RemoteProtocolError("it asks for more answers than it reads")

    def _receive_data(self, frame: Data) -> None:
        # Data of a dropped stream has used the connection's window too.
        self._owed_bytes += frame.size_bytes
        stream = self.streams.get(frame.stream_id)
        if stream is None or stream.over:
            if frame.stream_id > self._h2.highest_outbound_stream_id:
                raise FrameError("DATA on a stream that was never opened")
            return
        try:
            stream.receive_data(frame.payload, frame.size_bytes)
        except RemoteProtocolError as error:
            self._fail_alone(stream, error)
        else:
            if frame.last:
                self._receive_others(end_of(stream.id))

    def _receive_others(self, frames: bytes) -> None:
        """Pass frames to h2, and apply its events to their streams."""
        try:
            events = self._h2.receive_data(frames)
        except Exception as error:  # h2 raises its parsers' errors as they are
            raise RemoteProtocolError(f"invalid HTTP/2: {error}") from error
        for event in events:
            self.settled = self.settled or isinstance(event, h2.events.RemoteSettingsChanged)
            stream_id: int | None = getattr(event, "stream_id", None)
            if not stream_id:  # the windows of all streams may have grown
                for each in self.streams.values():
                    each.notify()
                continue
            stream = self.streams.get(stream_id)
            if stream is None or stream.over:
                continue
            try:
                self._apply(event, stream)
            except RemoteProtocolError as error:
                self._fail_alone(stream, error)
            except MalformedHeadersError as error:
                self._fail_alone(stream, RemoteProtocolError(str(error)))

    def _apply(self, event: h2.events.Event, stream: Stream) -> None:
        match event:
            case h2.events.ResponseReceived():
                self._frames.progressed()
                stream.receive_head(parse_response(event.headers or (), stream.method))
            case h2.events.InformationalResponseReceived():
                stream.receive_interim()
            case h2.events.StreamEnded():
                stream.receive_end()
            case h2.events.StreamReset(error_code=ErrorCodes.REFUSED_STREAM):
                stream.fail(_refused(stream, "refused"))
            case h2.events.StreamReset(error_code=code):
                is_protocol = code == ErrorCodes.PROTOCOL_ERROR
                kind = RemoteProtocolError if is_protocol else ReadError
                stream.fail(kind(f"the host reset the stream: {getattr(code, 'name', code)}"))
            case h2.events.WindowUpdated():
                stream.notify()
            case _:  # trailers, and events of no interest
                pass

    def _fail_alone(self, stream: Stream, error: Exception) -> None:
        """End the stream of a response that breaks the protocol, and no other (RFC 9113 §8.1.1)."""
        stream.fail(error)
        self._reset(stream, ErrorCodes.PROTOCOL_ERROR)

    def taken(self, stream: Stream, size_bytes: int) -> None:
        """Return window to the host for bytes of its body that were read."""
        stream.owed_bytes += size_bytes
        if stream.owed_bytes >= STREAM_WINDOW_BYTES // 2 and not stream.over and not self._closed(stream):
            self._out += window_update(stream.id, stream.credit())

    def drop(self, stream: Stream) -> None:
        """Forget a stream; reset it if it has not ended."""
        if self.streams.pop(stream.id, None) is not None:
            self._reset(stream, ErrorCodes.CANCEL)

    def fail(self, error: Callable[[Stream], Exception]) -> None:
        """End every stream with its error, as the connection has ended."""
        self.draining = True
        for stream in self.streams.values():
            stream.fail(error(stream))

    def send_goaway(self) -> None:
        """Send GOAWAY (RFC 9113 §6.8)."""
        self._h2.close_connection()
        self._collect()

    def output(self) -> bytes:
        """Take all bytes that wait to be sent."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def _collect(self) -> None:
        self._out += self._h2.data_to_send()

    def _reset(self, stream: Stream, code: ErrorCodes) -> None:
        if not self._closed(stream):
            self._h2.reset_stream(stream.id, code)
            self._collect()

    def _closed(self, stream: Stream) -> bool:
        over = self._h2.state_machine.state is h2.connection.ConnectionState.CLOSED
        found = self._h2.streams.get(stream.id)
        return over or found is None or found.closed


def _refused(stream: Stream, how: str) -> Exception:
    """Return the error of a refusal; a host that has begun to respond has begun the request."""
    return ReadError(how) if stream.response_started else RefusedError(how)
