"""Frames as they come: what h2 is better not asked about is read here. Pure.

- DATA, for h2 makes much of each frame: a body comes more than twice as fast without.
- GOAWAY, which h2 takes for the end, where RFC 9113 §6.8 lets the streams below it go on.
- Floods: h2 does not mind a host that sends nothing but pings.
"""

from typing import NamedTuple

HEAD_BYTES = 9
MAX_FRAME_BYTES = 16 * 1024
"""No frame is larger, unless we say that it may be (RFC 9113 §4.2)."""
MAX_IDLE_FRAMES = 1000
"""So many in a row that bring neither an answer nor a piece of one are a flood (RFC 9113 §10.5)."""

_DATA, _HEADERS, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0x0, 0x1, 0x7, 0x8, 0x9
_END_STREAM, _PADDED = 0x1, 0x8


class FrameError(Exception):
    """Frames that nobody should send."""


class Data(NamedTuple):
    """A piece of a body; size_bytes is what it takes of the windows, its padding included."""

    stream_id: int
    payload: bytes
    size_bytes: int
    last: bool


class GoAway(NamedTuple):
    """What the host says before it goes: streams above the last one were not begun."""

    last_stream_id: int
    code: int


class Frames:
    """Takes bytes as they come, gives frames, in their order."""

    def __init__(self) -> None:
        self._held = b""
        self._idle = 0

    def feed(self, data: bytes) -> list[Data | GoAway | bytes]:
        """What has come whole; bytes are frames for h2. Raises FrameError."""
        if self._held:
            data = self._held + data
        at = others_from = 0
        found: list[Data | GoAway | bytes] = []
        while len(data) - at >= HEAD_BYTES:
            end = at + HEAD_BYTES + int.from_bytes(data[at : at + 3], "big")
            if end - at > HEAD_BYTES + MAX_FRAME_BYTES:
                raise FrameError("a frame that is larger than may be")
            if end > len(data):
                break
            kind = data[at + 3]
            self._count(kind, end - at - HEAD_BYTES)
            if kind in {_DATA, _GOAWAY}:
                if others_from < at:
                    found.append(data[others_from:at])
                found.append(_goaway(data, at, end) if kind == _GOAWAY else _data(data, at, end))
                others_from = end
            at = end
        if others_from < at:
            found.append(data[others_from:at])
        self._held = data[at:]
        return found

    def moved(self) -> None:
        """Something has come of what came."""
        self._idle = 0

    def _count(self, kind: int, length: int) -> None:
        if kind == _DATA and length:
            self._idle = 0
        elif kind not in {_HEADERS, _CONTINUATION}:
            self._idle += 1
            if self._idle > MAX_IDLE_FRAMES:
                raise FrameError(f"{self._idle} frames in a row that bring nothing")


def _data(frames: bytes, at: int, end: int) -> Data:
    flags, begins = frames[at + 4], at + HEAD_BYTES
    size_bytes, ends = end - begins, end
    if flags & _PADDED:
        if not size_bytes or frames[begins] >= size_bytes:
            raise FrameError("more padding than there is room for")
        begins, ends = begins + 1, end - frames[begins]
    return Data(_id(frames, at + 5), frames[begins:ends], size_bytes, bool(flags & _END_STREAM))


def _goaway(frames: bytes, at: int, end: int) -> GoAway:
    if end - at < HEAD_BYTES + 8:
        raise FrameError("half a GOAWAY")
    code = int.from_bytes(frames[at + HEAD_BYTES + 4 : at + HEAD_BYTES + 8], "big")
    return GoAway(_id(frames, at + HEAD_BYTES), code)


def _id(frames: bytes, at: int) -> int:
    """The first bit says nothing (RFC 9113 §4.1)."""
    return int.from_bytes(frames[at : at + 4], "big") & 0x7FFFFFFF


def end_of(stream_id: int) -> bytes:
    """A DATA frame that only ends its stream."""
    return bytes((0, 0, 0, _DATA, _END_STREAM)) + stream_id.to_bytes(4, "big")


def window_update(stream_id: int, size_bytes: int) -> bytes:
    """The frame that lets the host send so much more; stream 0 is the connection."""
    head = bytes((0, 0, 4, _WINDOW_UPDATE, 0))
    return head + stream_id.to_bytes(4, "big") + size_bytes.to_bytes(4, "big")
