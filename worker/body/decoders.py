"""Decodes content codings (RFC 9110 §8.4) in bounded steps. Pure.

A coded body must be complete: one that stops within a stream, or continues after the last one, is an error.
An empty body is complete in every coding. Decoding stops as soon as the allowed ratio is exceeded.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import ClassVar, Protocol

import brotli

from fetchfleet.worker.body import zstd

STEP_BYTES = 128 * 1024
"""The maximum output of one decoder call, in bytes."""

SLICE_BYTES = 8 * 1024
"""The maximum input of one decoder call, in bytes: a decoder copies the input after the end of a member."""

FREE_STREAMS = 1000
"""Members or frames that any body may have."""
STREAM_BYTES = 32
"""Coded bytes that each further member or frame needs, on average. Each costs a new decoder even if it is
empty, so a limit on the decoded bytes does not suffice."""

MAX_CODINGS = 2
FREE_BYTES = 1 << 20
"""Decoded bytes that any body may have, because short repetitive bodies exceed every ratio."""

ZSTD_WINDOW_LOG_MAX = 23
"""8 MiB, the largest window that a recipient must support (RFC 9659 §3)."""

ACCEPT_ENCODING = "gzip, deflate, br, zstd"

SMALL_WINDOWS = "gzip, deflate"
"""The codings whose decoders need only 32 KiB each."""


class CodingError(Exception):
    """A body cannot be decoded. The message becomes the note of the result."""


class UnknownCodingError(CodingError):
    """The body has an unsupported coding, or too many codings."""


class CorruptError(CodingError):
    """The bytes are not valid in the coding that the response names."""


class CutShortError(CodingError):
    """The coded body is truncated."""


class InflatedError(CodingError):
    """The decoded body exceeds the allowed ratio."""


class Decoder(Protocol):
    """Decodes one coding."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the decoded chunk in pieces of at most STEP_BYTES. Raises CorruptError.

        The caller must exhaust the iterator. An empty piece marks the end of a member or frame.
        """

    def finish(self) -> None:
        """Check that the coded body is complete. Raises CutShortError."""


REGISTERED = frozenset(
    {
        *("aes128gcm", "br", "compress", "dcb", "dcz", "deflate", "exi"),
        *("gzip", "pack200-gzip", "x-compress", "zstd"),
    }
)
"""The HTTP Content Coding Registry of IANA, without aliases and without identity, which changes nothing."""


def names_of(content_encoding: str | None) -> tuple[str, ...]:
    """Return the members of a Content-Encoding field in lower case, with aliases replaced."""
    names = [name.strip().lower() for name in (content_encoding or "").split(",")]
    return tuple(_ALIASES.get(name, name) for name in names if name not in {"", "identity"})


def codings_of(content_encoding: str | None) -> tuple[str, ...]:
    """Return the registered codings of a Content-Encoding field, in the order in which they were applied.

    Other names are ignored: hosts send charsets, media types and `none`.
    """
    return tuple(name for name in names_of(content_encoding) if name in REGISTERED)


class DecoderChain:
    """Decodes all codings of a body, the last one first."""

    def __init__(self, codings: tuple[str, ...], max_ratio: int = 0) -> None:
        """Raise UnknownCodingError for an unsupported coding.

        max_ratio: the most decoded bytes per coded byte, beyond FREE_BYTES, after each decoder; 0 for no
        limit.
        """
        if len(codings) > MAX_CODINGS:
            raise UnknownCodingError(f"{len(codings)} content codings; at most {MAX_CODINGS} are supported")
        for name in codings:
            if name not in _DECODERS:
                raise UnknownCodingError(f"content coding {name[:40]!r} is not one of {ACCEPT_ENCODING}")
        self._decoders = [_DECODERS[name]() for name in reversed(codings)]
        self._decoded_bytes = [0] * len(codings)
        self._fed_bytes = 0
        self._streams = 0
        self._max_ratio = max_ratio

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the decoded chunk in pieces of at most STEP_BYTES; the caller must exhaust the iterator.

        An empty piece stands for work without output. Raises CorruptError or InflatedError.
        """
        self._fed_bytes += len(chunk)
        yield from self._through(chunk, 0)

    def finish(self) -> None:
        """Check that the coded body is complete. Raises CutShortError."""
        for decoder in self._decoders:
            decoder.finish()

    def _through(self, chunk: bytes, at: int) -> Iterator[bytes]:
        """Decode a chunk with the decoders from index `at` on."""
        if at == len(self._decoders):
            yield chunk
            return
        for start in range(0, len(chunk), SLICE_BYTES):
            for piece in self._decoders[at].feed(chunk[start : start + SLICE_BYTES]):
                if not piece:
                    self._streams += 1
                    if self._streams > FREE_STREAMS + self._fed_bytes // STREAM_BYTES:
                        raise CorruptError(f"{self._fed_bytes} coded bytes have {self._streams} streams")
                    yield piece
                    continue
                self._decoded_bytes[at] += len(piece)
                max_bytes = max(FREE_BYTES, self._max_ratio * self._fed_bytes)
                if self._max_ratio and self._decoded_bytes[at] > max_bytes:
                    raise InflatedError(
                        f"{self._fed_bytes} coded bytes decode to more than {max_bytes} bytes"
                        f" (max_decode_ratio {self._max_ratio})"
                    )
                yield from self._through(piece, at + 1)


class _Gzip:
    """gzip (RFC 1952): all members, each verified by its CRC."""

    def __init__(self) -> None:
        self._member: zlib._Decompress | None = None

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """See Decoder."""
        while chunk:
            if self._member is None:
                self._member = zlib.decompressobj(16 + zlib.MAX_WBITS)
            yield from _inflated("gzip", self._member, chunk)
            if not self._member.eof:
                return
            chunk, self._member = self._member.unused_data, None
            yield b""

    def finish(self) -> None:
        """See Decoder."""
        if self._member is not None:
            raise CutShortError("the gzip body is truncated")


class _Deflate:
    """deflate: in the zlib format (RFC 9110 §8.4.1.2), or raw, as some hosts send it."""

    def __init__(self) -> None:
        self._head = b""
        self._stream: zlib._Decompress | None = None

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """See Decoder."""
        if self._stream is None:
            self._head += chunk
            if len(self._head) < 2:
                return
            chunk, first, second = self._head, self._head[0], self._head[1]
            # The zlib header (RFC 1950 §2.2). A raw stream begins like it only if its padding is not 0.
            is_zlib = first & 0x0F == 8 and (first * 256 + second) % 31 == 0
            self._stream = zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
        if self._stream.eof and chunk:
            raise CorruptError("deflate: extra bytes after the end")
        yield from _inflated("deflate", self._stream, chunk)
        if self._stream.unused_data:
            raise CorruptError("deflate: extra bytes after the end")

    def finish(self) -> None:
        """See Decoder."""
        if self._head and (self._stream is None or not self._stream.eof):
            raise CutShortError("the deflate body is truncated")


class _Brotli:
    """br (RFC 7932)."""

    LIMIT_BYTES = STEP_BYTES // 2
    """Half a step, because the library returns up to twice its limit."""

    def __init__(self) -> None:
        self._stream = brotli.Decompressor()
        self._began = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """See Decoder; the library itself rejects bytes after the end."""
        self._began = self._began or bool(chunk)
        piece = self._process(chunk) if chunk else b""
        while piece:
            yield piece
            # The decoder may hold back output even if it accepts more input.
            piece = b"" if self._stream.is_finished() else self._process(b"")

    def _process(self, chunk: bytes) -> bytes:
        try:
            piece: bytes = self._stream.process(chunk, output_buffer_limit=self.LIMIT_BYTES)
        except brotli.error as error:
            raise CorruptError(f"br: {error}") from None
        return piece

    def finish(self) -> None:
        """See Decoder."""
        if self._began and not self._stream.is_finished():
            raise CutShortError("the br body is truncated")


class _Zstd:
    """zstd (RFC 8878): all frames, each verified by its checksum if it has one."""

    OPTIONS: ClassVar[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX}
    HEAD_BYTES = 8
    """The header of a skippable frame: magic number and length (§3.1.2). No frame is shorter."""

    def __init__(self) -> None:
        self._frame: zstd.ZstdDecompressor | None = None
        self._head = b""
        self._skip_bytes = 0

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
                if 0x50 <= chunk[0] <= 0x5F and chunk[1:4] == b"\x2a\x4d\x18":  # skippable
                    self._skip_bytes = int.from_bytes(chunk[4:8], "little")
                    chunk = chunk[self.HEAD_BYTES :]
                    yield b""
                    continue
                self._frame = zstd.ZstdDecompressor(options=self.OPTIONS)
            frame, more = self._frame, True
            while more:
                try:
                    piece = frame.decompress(chunk, STEP_BYTES)
                except zstd.ZstdError as error:
                    raise CorruptError(f"zstd: {error}") from None
                chunk = b""
                if piece:
                    yield piece
                more = not (frame.eof or frame.needs_input)
            if not frame.eof:
                return
            chunk, self._frame = frame.unused_data, None
            yield b""

    def finish(self) -> None:
        """See Decoder."""
        if self._frame is not None or self._head or self._skip_bytes:
            raise CutShortError("the zstd body is truncated")


def _inflated(name: str, stream: "zlib._Decompress", chunk: bytes) -> Iterator[bytes]:
    """Yield the decompressed chunk in pieces of at most STEP_BYTES."""
    while True:
        try:
            piece = stream.decompress(chunk, STEP_BYTES)
        except zlib.error as error:
            raise CorruptError(f"{name}: {error}") from None
        chunk = stream.unconsumed_tail
        if piece:
            yield piece
        # After a full step, zlib may hold back output even without more input.
        if stream.eof or (not chunk and len(piece) < STEP_BYTES):
            return


_ALIASES = {"x-gzip": "gzip"}  # RFC 9110 §8.4.1.3
_DECODERS: dict[str, Callable[[], Decoder]] = {
    "gzip": _Gzip,
    "deflate": _Deflate,
    "br": _Brotli,
    "zstd": _Zstd,
}
