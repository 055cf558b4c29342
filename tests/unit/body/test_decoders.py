"""Content codings, decoded step by step: complete and verified, or an error."""

import gzip
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import pairwise

import brotli
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fetchfleet.worker.body import zstd
from fetchfleet.worker.body.decoders import (
    FREE_BYTES,
    FREE_STREAMS,
    REGISTERED,
    STEP_BYTES,
    STREAM_BYTES,
    CodingError,
    CorruptError,
    CutShortError,
    DecoderChain,
    InflatedError,
    UnknownCodingError,
    codings_of,
    names_of,
)

MIB = 1 << 20


def bare_deflate(body: bytes) -> bytes:
    """Return deflate data without the zlib wrapper."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


def checked_zstd(body: bytes) -> bytes:
    """Return a frame with its checksum."""
    return zstd.compress(body, options={zstd.CompressionParameter.checksum_flag: 1})


def skippable(body: bytes) -> bytes:
    """Return a skippable frame (RFC 8878 §3.1.2)."""
    return b"\x50\x2a\x4d\x18" + len(body).to_bytes(4, "little") + body


Encode = Callable[[bytes], bytes]

ENCODERS: dict[str, tuple[str, Encode]] = {
    "gzip": ("gzip", gzip.compress),
    "two members": ("gzip", lambda body: gzip.compress(body[:5]) + gzip.compress(body[5:])),
    "members of nothing": (
        "x-gzip",
        lambda body: gzip.compress(b"") + gzip.compress(body) + gzip.compress(b""),
    ),
    "zlib": ("deflate", zlib.compress),
    "bare deflate": ("deflate", bare_deflate),
    "br": ("br", lambda body: brotli.compress(body, quality=5)),
    "zstd": ("zstd", checked_zstd),
    "two frames": ("zstd", lambda body: skippable(b"x") + checked_zstd(body[:5]) + checked_zstd(body[5:])),
    "gzip in br": ("gzip, br", lambda body: brotli.compress(gzip.compress(body), quality=5)),
    "zstd in gzip": ("ZSTD , GZip", lambda body: gzip.compress(checked_zstd(body))),
}
CHECKED = ("gzip", "two members", "zlib", "zstd", "two frames", "zstd in gzip")
"""Those that carry a checksum of what they hold."""

KINDS = st.sampled_from(sorted(ENCODERS))
BODIES = st.binary(max_size=300) | st.builds(
    lambda piece, times: piece * times, st.binary(max_size=40), st.integers(0, 3 * STEP_BYTES // 40)
)


def decoded(coding: str, chunks: Iterable[bytes], max_ratio: int = 0) -> bytes:
    """Return the output of the chunks, each step within its bound."""
    chain, out = DecoderChain(codings_of(coding), max_ratio), bytearray()
    for chunk in chunks:
        for piece in chain.feed(chunk):
            assert len(piece) <= STEP_BYTES
            out += piece
    chain.finish()
    return bytes(out)


def cut(body: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Return the body in pieces, some of them empty."""
    places = [0, *sorted(place % (len(body) + 1) for place in cuts), len(body)]
    return [body[start:end] for start, end in pairwise(places)]


@given(KINDS, BODIES, st.lists(st.integers(min_value=0), max_size=8))
def test_a_body_is_decoded_from_any_chunks(kind: str, body: bytes, cuts: list[int]) -> None:
    """Each coding decodes all its members and frames, alone and stacked."""
    coding, encode = ENCODERS[kind]

    assert decoded(coding, cut(encode(body), cuts)) == body


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_body_is_decoded_byte_by_byte(kind: str) -> None:
    """No coding needs more than a byte at a time."""
    coding, encode = ENCODERS[kind]
    packed = encode(b"as it was" * 20)

    assert decoded(coding, [packed[at : at + 1] for at in range(len(packed))]) == b"as it was" * 20


@given(KINDS, BODIES, st.integers(min_value=0))
def test_a_truncated_body_is_not_complete(kind: str, body: bytes, place: int) -> None:
    """A missing trailer is enough. A body that ends between members or frames is complete."""
    coding, encode = ENCODERS[kind]
    packed = encode(body)
    assume(len(packed) > 1)
    short = packed[: 1 + place % (len(packed) - 1)]
    try:
        left = decoded(coding, [short])
    except CutShortError:
        return

    assert kind in {"two members", "members of nothing", "two frames"}
    assert left in {b"", body[:5], body}


@given(st.sampled_from(CHECKED), BODIES, st.integers(min_value=0))
def test_a_flipped_bit_is_detected(kind: str, body: bytes, place: int) -> None:
    """The output equals the input, or there is none. Bits without effect are left out."""
    coding, encode = ENCODERS[kind]
    packed = bytearray(encode(body))
    bit = place % (8 * len(packed))
    packed[bit // 8] ^= 1 << bit % 8
    try:
        came = decoded(coding, [bytes(packed)])
    except CodingError:
        return

    assert came == body


@given(KINDS, BODIES, st.binary(min_size=1, max_size=20), st.booleans())
def test_bytes_after_the_end_are_refused(kind: str, body: bytes, more: bytes, together: bool) -> None:  # noqa: FBT001
    """The decoder refuses them in the same chunk and in the next."""
    coding, encode = ENCODERS[kind]
    packed = encode(body)
    assume(not more.startswith((b"\x1f", b"\x28", *(bytes([first]) for first in range(0x50, 0x60)))))

    with pytest.raises(CodingError):
        decoded(coding, [packed + more] if together else [packed, more])


@given(KINDS, st.binary(max_size=2000))
def test_junk_is_refused_or_decoded(kind: str, junk: bytes) -> None:
    """The only errors are those of the decoders module."""
    with suppress(CodingError):
        decoded(ENCODERS[kind][0], [junk])


@pytest.mark.parametrize("trailer", [b"\0" * 8, b"\x1f", b"\x1f\x8b", b"junk"])
def test_no_bytes_follow_the_last_member(trailer: bytes) -> None:
    """The decoder refuses padding and the beginning of another member."""
    with pytest.raises(CodingError):
        decoded("gzip", [gzip.compress(b"body") + trailer])


@pytest.mark.parametrize("at", [-8, -5, -4, -1])
def test_a_wrong_crc_or_length_is_refused(at: int) -> None:
    """The trailer of a member is compared with its content."""
    packed = bytearray(gzip.compress(b"body"))
    packed[at] ^= 0xFF

    with pytest.raises(CorruptError):
        decoded("gzip", [bytes(packed)])


def of_window(body: bytes, log: int) -> bytes:
    """Return a frame whose header names a window of that size, as for an unknown length."""
    packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: log})
    return packer.compress(body) + packer.flush()


def test_a_window_is_bounded() -> None:
    """No encoder may require more than 8 MiB of a receiver (RFC 9659)."""
    assert decoded("zstd", [of_window(b"x" * 100, 23)]) == b"x" * 100
    with pytest.raises(CorruptError):
        decoded("zstd", [of_window(b"x" * 100, 24)])


@pytest.mark.parametrize(
    ("header", "codings"),
    [
        (None, ()),
        ("", ()),
        ("identity", ()),
        (" , Identity,", ()),
        ("GZIP", ("gzip",)),
        ("x-gzip", ("gzip",)),
        ("deflate,br", ("deflate", "br")),
        ("gzip, utf-8", ("gzip",)),
        ("utf-8, BR", ("br",)),
    ],
)
def test_codings_are_read_as_they_were_applied(header: str | None, codings: tuple[str, ...]) -> None:
    """Names in any case and under any alias. `identity` is not a coding."""
    assert codings_of(header) == codings


@pytest.mark.parametrize(
    "header",
    [
        *("utf-8", "UTF8", "none", "null", "binary", "8bit", "7bit", "base64", "text/html", "charset=utf-8"),
        *("iso-8859-1", "caf\xe9", '"gzip"', "gzip;q=1", "gzip deflate", "*", "chunked", "rot13", "en"),
    ],
)
def test_a_name_that_is_not_registered_is_not_a_coding(header: str) -> None:
    """Hosts send charsets, media types and words. The name is kept for the error."""
    assert codings_of(header) == ()
    assert names_of(header) == (header.lower(),)


@pytest.mark.parametrize("name", sorted(REGISTERED - {"gzip", "deflate", "br", "zstd"}))
def test_a_registered_coding_without_a_decoder_is_refused_at_once(name: str) -> None:
    """It is refused even over or under one that has a decoder."""
    for header in (name, f"gzip, {name}", f"{name.upper()}, br, utf-8"):
        with pytest.raises(UnknownCodingError):
            DecoderChain(codings_of(header))


def test_a_third_coding_over_two_others_is_refused_at_once() -> None:
    """Names that are not codings are not counted."""
    with pytest.raises(UnknownCodingError):
        DecoderChain(codings_of("gzip, gzip, gzip"))
    DecoderChain(codings_of("none, gzip, utf-8, br, binary"))


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, br", "zstd, deflate"])
def test_an_empty_body_is_complete_in_every_coding(coding: str) -> None:
    """The empty content of another coding is complete too."""
    assert decoded(coding, []) == decoded(coding, [b"", b""]) == b""
    assert decoded(f"{coding.partition(',')[0]}, gzip", [gzip.compress(b"")]) == b""


def bombs() -> dict[str, tuple[str, bytes]]:
    """Return 64 MiB in each coding, by name; some of them stacked."""
    zeros = bytes(64 * MIB)
    gzipped = gzip.compress(zeros)
    return {
        "gzip": ("gzip", gzipped),
        "deflate": ("deflate", zlib.compress(zeros)),
        "br": ("br", brotli.compress(zeros, quality=4)),
        "zstd": ("zstd", zstd.compress(zeros)),
        "gzip in gzip": ("gzip, gzip", gzip.compress(gzipped)),
        "gzip in zstd": ("gzip, zstd", zstd.compress(gzipped)),
        "members of nothing in br": ("gzip, br", brotli.compress(gzip.compress(b"") * 200_000, quality=4)),
    }


@pytest.fixture(scope="module")
def packed() -> dict[str, tuple[str, bytes]]:
    """Return the bombs, made once."""
    return bombs()


BOMBS = ["gzip", "deflate", "br", "zstd", "gzip in gzip", "gzip in zstd", "members of nothing in br"]


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_stopped_at_the_ratio(packed: dict[str, tuple[str, bytes]], name: str) -> None:
    """It holds for whichever step the growth occurs in."""
    coding, bomb = packed[name]
    chunks = [bomb[start : start + 65536] for start in range(0, len(bomb), 65536)]
    chain, came_bytes = DecoderChain(codings_of(coding), 200), 0

    def take() -> None:
        nonlocal came_bytes
        for piece in (piece for chunk in chunks for piece in chain.feed(chunk)):
            came_bytes += len(piece)

    with pytest.raises(CorruptError if "members" in name else InflatedError):
        take()

    assert came_bytes <= max(FREE_BYTES, 200 * min(len(bomb), 65536))


@pytest.mark.parametrize("name", BOMBS[:-1])
def test_a_bomb_needs_little_memory(packed: dict[str, tuple[str, bytes]], name: str) -> None:
    """Without a ratio it is decoded step by step, and dropped output is freed."""
    coding, bomb = packed[name]
    chain, came_bytes = DecoderChain(codings_of(coding)), 0
    tracemalloc.start()
    try:
        for piece in chain.feed(bomb):
            came_bytes += len(piece)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    chain.finish()

    assert came_bytes == 64 * MIB
    assert most_bytes < 4 * MIB


STREAMS: dict[str, Encode] = {"gzip": gzip.compress, "zstd": checked_zstd}


@pytest.mark.parametrize(
    ("coding", "stream"),
    [
        ("gzip", gzip.compress(b"")),
        ("gzip", gzip.compress(b"x")),
        ("zstd", zstd.compress(b"")),
        ("zstd", zstd.compress(b"x")),
        ("zstd", skippable(b"")),
        ("zstd", skippable(b"x" * 10)),
        ("gzip, br", gzip.compress(b"")),
    ],
    ids=[
        "members",
        "of a byte",
        "frames",
        "frames of a byte",
        "skippable",
        "larger ones",
        "over one another",
    ],
)
def test_a_body_of_many_tiny_streams_is_refused(coding: str, stream: bytes) -> None:
    """Each stream costs a decoder. Their number is limited by the size of the body."""
    body, streams = stream * 20_000, 0
    body = brotli.compress(body) if coding.endswith("br") else body
    chain, fed_bytes = DecoderChain(codings_of(coding), 200), 0

    with pytest.raises(CorruptError, match="streams"):  # noqa: PT012
        for start in range(0, len(body), 1 << 16):
            fed_bytes += len(body[start : start + (1 << 16)])
            streams += sum(not piece for piece in chain.feed(body[start : start + (1 << 16)]))

    assert streams <= FREE_STREAMS + fed_bytes // STREAM_BYTES


@given(
    st.sampled_from(sorted(STREAMS)),
    st.lists(st.binary(max_size=60), max_size=20),
    st.integers(min_value=1, max_value=200),
    st.lists(st.integers(min_value=0), max_size=4),
)
def test_only_many_tiny_streams_are_refused(
    coding: str, bodies: list[bytes], times: int, cuts: list[int]
) -> None:
    """A body of separately packed records is decoded."""
    packed = b"".join(STREAMS[coding](body) for body in bodies) * times
    tiny = len(bodies) * times > FREE_STREAMS + len(packed) // STREAM_BYTES
    assume(packed)
    try:
        came = decoded(coding, cut(packed, cuts))
    except CorruptError:
        assert len(bodies) * times > FREE_STREAMS
        return

    assert not tiny
    assert came == b"".join(bodies) * times


@given(st.binary(max_size=100), st.lists(st.integers(min_value=0), max_size=6))
def test_skippable_frames_are_skipped_in_any_chunks(body: bytes, cuts: list[int]) -> None:
    """Skippable frames may be between data frames and around them, and truncation is detected."""
    packed = skippable(body) + checked_zstd(body) + skippable(b"") + skippable(body)

    assert decoded("zstd", cut(packed, cuts)) == body
    with pytest.raises(CutShortError):
        decoded("zstd", cut(packed[: -len(body)] + body[1:] if body else packed[:-1], cuts))


def test_a_short_body_may_grow_without_limit() -> None:
    """The first MiB is free, and so is growth within the ratio beyond it."""
    assert len(decoded("br", [brotli.compress(bytes(FREE_BYTES))], 2)) == FREE_BYTES
    with pytest.raises(InflatedError):
        decoded("br", [brotli.compress(bytes(FREE_BYTES + 1))], 2)
    assert len(decoded("deflate", [zlib.compress(bytes(4 * MIB), 1)], 1100)) == 4 * MIB
