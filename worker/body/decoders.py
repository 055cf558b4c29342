"""Undoes content codings (RFC 9110 §8.4) a bounded step at a time. Pure.

What was coded must come to its end: a body that stops in the middle of a stream, or goes on after the last,
is never passed off as whole. A body that grows out of all proportion is stopped as it does.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import ClassVar, Protocol

import brotli

from fetchfleet.worker.util import zstd

STEP_BYTES = 128 * 1024
"""No decoder hands out more at a time, however well a body is packed."""

SLICE_BYTES = 8 * 1024
"""No decoder is fed more at a time: what it leaves over at the end of a member is copied."""

FREE_STREAMS = 1000
STREAM_BYTES = 32
"""Beyond the free ones a member or frame takes, on average, so many of the bytes that came: each costs a
decoder of its own, also one that holds nothing, which no cap on what comes out would notice."""

MAX_CODINGS = 2
FREE_BYTES = 1 << 20
"""So much may come of any body: short ones of one letter are packed beyond every ratio."""

ZSTD_WINDOW_LOG_MAX = 23
"""8 MiB: more, no encoder may ask of a receiver (RFC 9659 §3)."""

ACCEPT_ENCODING = "gzip, deflate, br, zstd"

SMALL_WINDOWS = "gzip, deflate"
"""Those whose decoders take next to nothing, 32 KiB each."""


class CodingError(Exception):
    """A body that cannot be decoded; the message says why."""


class UnknownCodingError(CodingError):
    """A coding that nobody asked for and that is not known here, or too many of them."""


class CorruptError(CodingError):
    """The bytes are not of the coding that the answer names."""


class CutShortError(CodingError):
    """The coded body ends before its own end."""


class InflatedError(CodingError):
    """The body has grown to more than the ratio allows."""


class Decoder(Protocol):
    """Undoes one coding."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """What the chunk brings, STEP_BYTES at most at a time; to be taken whole. Raises CorruptError.

        An empty piece says that a member or frame has come to its end.
        """

    def finish(self) -> None:
        """Nothing more comes; raises CutShortError if something should."""


def codings_of(content_encoding: str | None) -> tuple[str, ...]:
    """The codings of a body in the order in which they were applied, by their usual names."""
    names = [name.strip().lower() for name in (content_encoding or "").split(",")]
    return tuple(_ALIASES.get(name, name) for name in names if name not in {"", "identity"})


class Chain:
    """Undoes all codings of a body, the last one first.

    max_ratio: how many times larger than what has been fed the outcome may be beyond FREE_BYTES, also that
    of a step in between; 0 for no bound. Raises UnknownCodingError.
    """

    def __init__(self, codings: tuple[str, ...], max_ratio: int = 0) -> None:
        if len(codings) > MAX_CODINGS:
            raise UnknownCodingError(f"{len(codings)} content codings are more than {MAX_CODINGS}")
        for name in codings:
            if name not in _DECODERS:
                raise UnknownCodingError(f"content coding {name[:40]!r} is none of {ACCEPT_ENCODING}")
        self._decoders = [_DECODERS[name]() for name in reversed(codings)]
        self._came_bytes = [0] * len(codings)
        self._fed_bytes = 0
        self._streams = 0
        self._max_ratio = max_ratio

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """What the chunk brings, STEP_BYTES at most at a time; to be taken to its end.

        An empty piece brings nothing, but has taken its time, too. Raises CorruptError or InflatedError.
        """
        self._fed_bytes += len(chunk)
        yield from self._through(chunk, 0)

    def finish(self) -> None:
        """Nothing more comes; raises CutShortError if something should."""
        for decoder in self._decoders:
            decoder.finish()

    def _through(self, chunk: bytes, at: int) -> Iterator[bytes]:
        if at == len(self._decoders):
            yield chunk
            return
        for start in range(0, len(chunk), SLICE_BYTES):
            for piece in self._decoders[at].feed(chunk[start : start + SLICE_BYTES]):
                if piece:
                    self._count(at, len(piece))
                    yield from self._through(piece, at + 1)
                else:
                    self._count_stream()
                    yield piece

    def _count_stream(self) -> None:
        self._streams += 1
        if self._streams > FREE_STREAMS + self._fed_bytes // STREAM_BYTES:
            raise CorruptError(f"{self._fed_bytes} coded bytes hold {self._streams} streams")

    def _count(self, at: int, piece_bytes: int) -> None:
        self._came_bytes[at] += piece_bytes
        most = max(FREE_BYTES, self._max_ratio * self._fed_bytes)
        if self._max_ratio and self._came_bytes[at] > most:
            raise InflatedError(
                f"{self._fed_bytes} coded bytes have become more than {most}, {self._max_ratio} times as many"
            )


class _Gzip:
    """gzip (RFC 1952): all members, each against its own CRC."""

    def __init__(self) -> None:
        self._member: zlib._Decompress | None = None
        self._began = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """See Decoder."""
        while chunk:
            if self._member is None:
                self._member = zlib.decompressobj(16 + zlib.MAX_WBITS)
                self._began = True
            yield from _inflated("gzip", self._member, chunk)
            if not self._member.eof:
                return
            chunk, self._member = self._member.unused_data, None
            yield b""

    def finish(self) -> None:
        """See Decoder."""
        if self._member is not None or not self._began:
            raise CutShortError("the gzip body ends before its end")


class _Deflate:
    """deflate: as RFC 9110 §8.4.1.2 has it in zlib's wrapping, or bare, as some send it."""

    def __init__(self) -> None:
        self._head = b""
        self._stream: zlib._Decompress | None = None

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """See Decoder."""
        if self._stream is None:
            self._head += chunk
            if len(self._head) < 2:
                return
            chunk = self._head
            self._stream = zlib.decompressobj(zlib.MAX_WBITS if _is_zlib(chunk) else -zlib.MAX_WBITS)
        if self._stream.eof and chunk:
            raise CorruptError("deflate: something follows the end")
        yield from _inflated("deflate", self._stream, chunk)
        if self._stream.unused_data:
            raise CorruptError("deflate: something follows the end")

    def finish(self) -> None:
        """See Decoder."""
        if self._stream is None or not self._stream.eof:
            raise CutShortError("the deflate body ends before its end")


class _Brotli:
    """br (RFC 7932)."""

    LIMIT_BYTES = STEP_BYTES // 2
    """The library hands out up to twice its limit."""

    def __init__(self) -> None:
        self._stream = brotli.Decompressor()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """See Decoder; the library itself refuses what follows the end."""
        piece = self._process(chunk) if chunk else b""
        while piece:
            yield piece
            # That it would take more does not say that it has handed out everything.
            piece = b"" if self._stream.is_finished() else self._process(b"")

    def _process(self, chunk: bytes) -> bytes:
        try:
            piece: bytes = self._stream.process(chunk, output_buffer_limit=self.LIMIT_BYTES)
        except brotli.error as error:
            raise CorruptError(f"br: {error}") from None
        return piece

    def finish(self) -> None:
        """See Decoder."""
        if not self._stream.is_finished():
            raise CutShortError("the br body ends before its end")


class _Zstd:
    """zstd (RFC 8878): all frames, each against its checksum if it has one."""

    OPTIONS: ClassVar[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX}
    HEAD_BYTES = 8
    """Every frame is longer; that of one to be skipped says in so many how much there is to skip (§3.1.2)."""

    def __init__(self) -> None:
        self._frame: zstd.ZstdDecompressor | None = None
        self._head = b""
        self._skip_bytes = 0
        self._began = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """See Decoder."""
        while chunk:
            if self._skip_bytes:
                self._skip_bytes, chunk = max(0, self._skip_bytes - len(chunk)), chunk[self._skip_bytes :]
                continue
            if self._frame is None:
                chunk, self._head = self._head + chunk, b""
                if len(chunk) < self.HEAD_BYTES:
                    self._head = chunk
                    return
                self._began = True
                if _is_skippable(chunk):
                    self._skip_bytes = int.from_bytes(chunk[4:8], "little")
                    chunk = chunk[self.HEAD_BYTES :]
                    yield b""
                    continue
                self._frame = zstd.ZstdDecompressor(options=self.OPTIONS)
            yield from self._of_frame(self._frame, chunk)
            if not self._frame.eof:
                return
            chunk, self._frame = self._frame.unused_data, None
            yield b""

    def _of_frame(self, frame: zstd.ZstdDecompressor, chunk: bytes) -> Iterator[bytes]:
        while True:
            try:
                piece = frame.decompress(chunk, STEP_BYTES)
            except zstd.ZstdError as error:
                raise CorruptError(f"zstd: {error}") from None
            chunk = b""
            if piece:
                yield piece
            if frame.eof or frame.needs_input:
                return

    def finish(self) -> None:
        """See Decoder."""
        if self._frame is not None or self._head or self._skip_bytes or not self._began:
            raise CutShortError("the zstd body ends before its end")


def _inflated(name: str, stream: "zlib._Decompress", chunk: bytes) -> Iterator[bytes]:
    """What zlib makes of the chunk, or of what it kept back the last time."""
    while True:
        try:
            piece = stream.decompress(chunk, STEP_BYTES)
        except zlib.error as error:
            raise CorruptError(f"{name}: {error}") from None
        chunk = stream.unconsumed_tail
        if piece:
            yield piece
        # A full step may have left something behind in zlib itself, with no input to show for it.
        if stream.eof or (not chunk and len(piece) < STEP_BYTES):
            return


def _is_zlib(head: bytes) -> bool:
    """Whether this is zlib's header (RFC 1950 §2.2); a bare stream begins so only if its padding is not 0."""
    return head[0] & 0x0F == 8 and (head[0] * 256 + head[1]) % 31 == 0


def _is_skippable(head: bytes) -> bool:
    """Whether a frame of zstd holds nothing (RFC 8878 §3.1.2)."""
    return 0x50 <= head[0] <= 0x5F and head[1:4] == b"\x2a\x4d\x18"


_ALIASES = {"x-gzip": "gzip"}  # RFC 9110 §8.4.1.3
_DECODERS: dict[str, Callable[[], Decoder]] = {
    "gzip": _Gzip,
    "deflate": _Deflate,
    "br": _Brotli,
    "zstd": _Zstd,
}
