"""Splits received bytes into frames; handles the frames that h2 handles badly. Pure.

- DATA: h2 does much work for each frame; bodies arrive more than twice as fast without it.
- GOAWAY: h2 ends the connection, while RFC 9113 §6.8 lets the streams below the last one finish.
- Floods: h2 accepts any number of pings from a host that sends nothing else.
"""

from typing import NamedTuple

HEAD_BYTES = 9
MAX_FRAME_BYTES = 16 * 1024
"""The largest frame, as the settings allow no larger one (RFC 9113 §4.2)."""
MAX_IDLE_FRAMES = 1000
"""More consecutive frames without a part of a response are a flood (RFC 9113 §10.5)."""

_DATA, _HEADERS, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0x0, 0x1, 0x7, 0x8, 0x9
_END_STREAM, _PADDED = 0x1, 0x8


class FrameError(Exception):
    """Frames that break the protocol."""


class Data(NamedTuple):
    """A piece of a body."""

    stream_id: int
    payload: bytes
    size_bytes: int
    """What it takes of the windows: the payload and its padding."""
    last: bool


class GoAway(NamedTuple):
    """The host stops: it has not begun the streams above the last one."""

    last_stream_id: int
    code: int


class Frames:
    """Takes bytes as they arrive; returns whole frames in order."""

    def __init__(self) -> None:
        self._partial = b""
        self._idle = 0

    def feed(self, data: bytes) -> list[Data | GoAway | bytes]:
        """Return the frames that are complete; bytes are other frames, for h2. Raises FrameError."""
        data = self._partial + data
        at = others_from = 0
        found: list[Data | GoAway | bytes] = []
        while len(data) - at >= HEAD_BYTES:
            length = int.from_bytes(data[at : at + 3], "big")
            end = at + HEAD_BYTES + length
            if length > MAX_FRAME_BYTES:
                raise FrameError(f"a frame of more than {MAX_FRAME_BYTES} bytes")
            if end > len(data):
                break
            frame_type = data[at + 3]
            if frame_type == _DATA and length:
                self._idle = 0
            elif frame_type not in {_HEADERS, _CONTINUATION}:
                self._idle += 1
                if self._idle > MAX_IDLE_FRAMES:
                    raise FrameError(f"{self._idle} frames in a row without a part of a response")
            if frame_type in {_DATA, _GOAWAY}:
                if others_from < at:
                    found.append(data[others_from:at])
                found.append(_parse(data, at, end))
                others_from = end
            at = end
        if others_from < at:
            found.append(data[others_from:at])
        self._partial = data[at:]
        return found

    def progressed(self) -> None:
        """Reset the count of frames in a row that bring nothing."""
        self._idle = 0


def _parse(data: bytes, at: int, end: int) -> Data | GoAway:
    """Return the DATA or GOAWAY frame at this place."""
    flags, payload, payload_end = data[at + 4], at + HEAD_BYTES, end
    length = end - payload
    if data[at + 3] == _GOAWAY:
        if length < 8:
            raise FrameError("half a GOAWAY")
        code = int.from_bytes(data[payload + 4 : payload + 8], "big")
        return GoAway(_stream_id(data, payload), code)
    if flags & _PADDED:
        if not length or data[payload] >= length:
            raise FrameError("more padding than payload")
        payload, payload_end = payload + 1, end - data[payload]
    return Data(_stream_id(data, at + 5), data[payload:payload_end], length, bool(flags & _END_STREAM))


def _stream_id(data: bytes, at: int) -> int:
    """Read a stream identifier without its reserved bit (RFC 9113 §4.1)."""
    return int.from_bytes(data[at : at + 4], "big") & 0x7FFFFFFF


def end_of(stream_id: int) -> bytes:
    """Return a DATA frame that only ends its stream."""
    return bytes((0, 0, 0, _DATA, _END_STREAM)) + stream_id.to_bytes(4, "big")


def window_update(stream_id: int, size_bytes: int) -> bytes:
    """Return the frame that lets the host send so much more; stream 0 is the connection."""
    head = bytes((0, 0, 4, _WINDOW_UPDATE, 0))
    return head + stream_id.to_bytes(4, "big") + size_bytes.to_bytes(4, "big")
