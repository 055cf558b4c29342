"""Received bytes as frames, with the cases that h2 does not handle well. Pure.

- DATA: without h2's work for each frame, bodies arrive more than twice as fast.
- GOAWAY: h2 ends the connection, but RFC 9113 §6.8 lets the streams up to the last one finish.
- Floods: h2 accepts any number of pings from a host that sends nothing else.
"""

from typing import NamedTuple

HEAD_BYTES = 9
MAX_FRAME_BYTES = 16 * 1024
"""The initial SETTINGS_MAX_FRAME_SIZE, which this client does not raise (RFC 9113 §4.2)."""
MAX_IDLE_FRAMES = 1000
"""The maximum number of consecutive frames without response data. More are a flood (RFC 9113 §10.5)."""

_DATA, _HEADERS, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0x0, 0x1, 0x7, 0x8, 0x9
_END_STREAM, _PADDED = 0x1, 0x8


class FrameError(Exception):
    """A frame that violates the protocol."""


class Data(NamedTuple):
    """A DATA frame."""

    stream_id: int
    payload: bytes
    size_bytes: int
    """The bytes that count in the windows: the payload and its padding."""
    last: bool
    """True if the frame ends its stream."""


class GoAway(NamedTuple):
    """A GOAWAY frame: the host takes no more streams."""

    last_stream_id: int
    """The host has not processed streams with a higher ID."""
    code: int


class FrameReader:
    """A splitter of received bytes into frames, in order."""

    def __init__(self) -> None:
        self._partial = b""
        self._idle = 0
        """The number of frames in a row without a part of a response."""

    def feed(self, data: bytes) -> list[Data | GoAway | bytes]:
        """Return the complete frames; frames of other types as bytes, for h2. Raises FrameError."""
        data = self._partial + data
        at = others_from = 0
        frames: list[Data | GoAway | bytes] = []
        while len(data) - at >= HEAD_BYTES:
            length = int.from_bytes(data[at : at + 3], "big")
            end = at + HEAD_BYTES + length
            if length > MAX_FRAME_BYTES:
                raise FrameError(f"received a frame of {length} bytes; the limit is {MAX_FRAME_BYTES}")
            if end > len(data):
                break
            frame_type = data[at + 3]
            if frame_type == _DATA and length:
                self._idle = 0
            elif frame_type not in {_HEADERS, _CONTINUATION}:
                self._idle += 1
                if self._idle > MAX_IDLE_FRAMES:
                    raise FrameError(f"received {self._idle} frames in a row without a part of a response")
            if frame_type in {_DATA, _GOAWAY}:
                if others_from < at:
                    frames.append(data[others_from:at])
                frames.append(_parse(data, at, end))
                others_from = end
            at = end
        if others_from < at:
            frames.append(data[others_from:at])
        self._partial = data[at:]
        return frames

    def reset_idle(self) -> None:
        """Restart the count of frames without a part of a response."""
        self._idle = 0


def _parse(data: bytes, at: int, end: int) -> Data | GoAway:
    """Parse the DATA or GOAWAY frame from `at` to `end`."""
    flags, payload, payload_end = data[at + 4], at + HEAD_BYTES, end
    length = end - payload
    if data[at + 3] == _GOAWAY:
        if length < 8:
            raise FrameError("received a truncated GOAWAY")
        code = int.from_bytes(data[payload + 4 : payload + 8], "big")
        return GoAway(_stream_id(data, payload), code)
    if flags & _PADDED:
        if not length or data[payload] >= length:
            raise FrameError("received DATA with more padding than payload")
        payload, payload_end = payload + 1, end - data[payload]
    return Data(_stream_id(data, at + 5), data[payload:payload_end], length, bool(flags & _END_STREAM))


def _stream_id(data: bytes, at: int) -> int:
    """Read a stream identifier without its reserved bit (RFC 9113 §4.1)."""
    return int.from_bytes(data[at : at + 4], "big") & 0x7FFFFFFF


def end_of(stream_id: int) -> bytes:
    """Return an empty DATA frame that ends its stream."""
    return bytes((0, 0, 0, _DATA, _END_STREAM)) + stream_id.to_bytes(4, "big")


def window_update(stream_id: int, size_bytes: int) -> bytes:
    """Return a WINDOW_UPDATE frame, which enlarges the window of a stream or the connection (stream 0)."""
    head = bytes((0, 0, 4, _WINDOW_UPDATE, 0))
    return head + stream_id.to_bytes(4, "big") + size_bytes.to_bytes(4, "big")
