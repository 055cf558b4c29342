"""The state of one HTTP/2 connection, without its socket: h2, the streams, and their windows.

The connection's window is returned to the host as bytes arrive, a stream's window as they are read. A slow
reader therefore stops its own stream only, and memory is bounded by one window for each stream.
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
    FrameReader,
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
"""The largest concurrency of a policy."""
MAX_HEAD_BYTES = 64 * 1024
MAX_UNSENT_BYTES = 512 * 1024
"""The maximum number of unsent bytes. A host beyond it floods the worker with pings and reads no replies."""

_CREDIT_BYTES = 1 << 20
"""The received bytes after which the connection's window is returned."""
_CONFIG = h2.config.H2Configuration(
    header_encoding=None, validate_inbound_headers=False, normalize_inbound_headers=False
)


class Session:
    """The state of one connection. `output` returns the bytes to send."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.draining = False
        """True if the connection takes no more streams and closes after the last one."""
        self.has_settings = False
        """True if the host has sent its settings, which state the number of streams that it allows."""
        self._frames = FrameReader()
        self._h2 = h2.connection.H2Connection(config=_CONFIG)
        self._owed_bytes = 0
        """Received bytes that are not yet returned to the connection's window."""
        self._out = bytearray()
        settings = {
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
            SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEAD_BYTES,
        }
        # Replace h2's defaults before the preface, so that it sends these settings only.
        self._h2.local_settings = h2.settings.Settings(client=True, initial_values=settings)
        del self._h2.local_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL]
        self._h2.initiate_connection()
        self._collect()
        self._out += window_update(0, CONNECTION_WINDOW_BYTES - 65_535)

    @property
    def free_streams(self) -> int:
        """The number of further streams that the connection takes now; one before the host's settings."""
        if self.draining:
            return 0
        max_streams = (
            min(self._h2.remote_settings.max_concurrent_streams, MAX_STREAMS) if self.has_settings else 1
        )
        return max(0, max_streams - len(self.streams))

    @property
    def unsent_bytes(self) -> int:
        """The number of bytes that wait to be sent."""
        return len(self._out)

    def open(self, fields: list[Header], method: str, *, has_body: bool) -> Stream:
        """Send the header section of a request. The caller has checked `free_streams`.

        Raises RefusedError if the connection takes no more streams, or InvalidRequestError.
        """
        try:
            stream_id = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream_id, fields, end_stream=not has_body)
        except (h2.exceptions.NoAvailableStreamIDError, h2.exceptions.TooManyStreamsError) as error:
            self.draining = True
            raise RefusedError(str(error)) from error
        except h2.exceptions.ProtocolError as error:
            self.draining = True  # the compressor's table may hold some of the headers
            raise InvalidRequestError(str(error)) from error
        skip_content_length_check(self._h2.streams[stream_id])
        stream = self.streams[stream_id] = Stream(stream_id, method, STREAM_WINDOW_BYTES)
        self._collect()
        return stream

    def sendable_bytes(self, stream: Stream) -> int:
        """Return how many bytes of the request body may be sent at once."""
        if stream.done or self._closed(stream):
            return 0
        window = self._h2.local_flow_control_window(stream.id)
        return max(0, min(window, self._h2.max_outbound_frame_size))

    def send(self, stream: Stream, data: bytes | memoryview, *, last: bool = False) -> None:
        """Send a piece of the request body. The caller has checked `sendable_bytes`."""
        if not self._closed(stream):
            self._h2.send_data(stream.id, data, end_stream=last)
            self._frames.reset_idle()
            self._collect()

    def receive(self, data: bytes) -> None:
        """Process bytes from the host. Raises RemoteProtocolError, after which the connection is unusable."""
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
            raise RemoteProtocolError("the host sends pings or settings without reading the replies")

    def _receive_data(self, frame: Data) -> None:
        # DATA of a dropped stream uses the connection's window too.
        self._owed_bytes += frame.size_bytes
        stream = self.streams.get(frame.stream_id)
        if stream is None or stream.done:
            if frame.stream_id > self._h2.highest_outbound_stream_id:
                raise FrameError(f"received DATA on stream {frame.stream_id}, which was never opened")
            return
        try:
            stream.receive_data(frame.payload, frame.size_bytes)
        except RemoteProtocolError as error:
            self._fail_stream(stream, error)
        else:
            if frame.last:
                self._receive_others(end_of(stream.id))

    def _receive_others(self, frames: bytes) -> None:
        """Pass frames to h2, and apply its events to their streams."""
        try:
            events = self._h2.receive_data(frames)
        except Exception as error:  # h2 does not wrap the errors of its parsers
            raise RemoteProtocolError(f"invalid HTTP/2: {error}") from error
        for event in events:
            self.has_settings = self.has_settings or isinstance(event, h2.events.RemoteSettingsChanged)
            stream_id: int | None = getattr(event, "stream_id", None)
            if not stream_id:  # an event of the connection may enlarge the windows of all streams
                for each in self.streams.values():
                    each.notify()
                continue
            stream = self.streams.get(stream_id)
            if stream is None or stream.done:
                continue
            try:
                self._apply(event, stream)
            except RemoteProtocolError as error:
                self._fail_stream(stream, error)
            except MalformedHeadersError as error:
                self._fail_stream(stream, RemoteProtocolError(str(error)))

    def _apply(self, event: h2.events.Event, stream: Stream) -> None:
        match event:
            case h2.events.ResponseReceived():
                self._frames.reset_idle()
                stream.receive_head(parse_response(event.headers or (), stream.method))
            case h2.events.InformationalResponseReceived():
                stream.receive_interim()
            case h2.events.StreamEnded():
                stream.receive_end()
            case h2.events.StreamReset(error_code=ErrorCodes.REFUSED_STREAM):
                stream.fail(_refused(stream, "REFUSED_STREAM"))
            case h2.events.StreamReset(error_code=code):
                is_protocol = code == ErrorCodes.PROTOCOL_ERROR
                kind = RemoteProtocolError if is_protocol else ReadError
                stream.fail(kind(f"the host reset the stream: {getattr(code, 'name', code)}"))
            case h2.events.WindowUpdated():
                stream.notify()
            case _:  # trailers and other events need no action
                pass

    def _fail_stream(self, stream: Stream, error: Exception) -> None:
        """End only the stream of a response that violates the protocol (RFC 9113 §8.1.1)."""
        stream.fail(error)
        self._reset(stream, ErrorCodes.PROTOCOL_ERROR)

    def return_window(self, stream: Stream, size_bytes: int) -> None:
        """Return the window of body bytes that were read to the host, half a window or more at a time."""
        stream.owed_bytes += size_bytes
        if stream.owed_bytes >= STREAM_WINDOW_BYTES // 2 and not stream.done and not self._closed(stream):
            self._out += window_update(stream.id, stream.credit())

    def drop(self, stream: Stream) -> None:
        """Forget a stream; reset it if it has not ended."""
        if self.streams.pop(stream.id, None) is not None:
            self._reset(stream, ErrorCodes.CANCEL)

    def fail(self, error_of: Callable[[Stream], Exception]) -> None:
        """End every stream with the error that `error_of` returns for it."""
        self.draining = True
        for stream in self.streams.values():
            stream.fail(error_of(stream))

    def send_goaway(self) -> None:
        """Send GOAWAY (RFC 9113 §6.8)."""
        self._h2.close_connection()
        self._collect()

    def output(self) -> bytes:
        """Return the bytes that wait to be sent, and forget them."""
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
        connection_closed = self._h2.state_machine.state is h2.connection.ConnectionState.CLOSED
        h2_stream = self._h2.streams.get(stream.id)
        return connection_closed or h2_stream is None or h2_stream.closed


def _refused(stream: Stream, message: str) -> Exception:
    """Return the error of a refusal. After any part of a response the host has processed the request."""
    return ReadError(message) if stream.response_started else RefusedError(message)
