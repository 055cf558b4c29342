"""The body of a response on its way from the connection to the sink: decoded and checked, if asked for."""

import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import msgspec

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.worker.body.decoders import (
    ACCEPT_ENCODING,
    SMALL_WINDOWS,
    STEP_BYTES,
    DecoderChain,
    UnknownCodingError,
    codings_of,
    names_of,
)
from fetchfleet.worker.body.digests import Digest, digests_of
from fetchfleet.worker.body.json_lines import JsonLinesChecker
from fetchfleet.worker.body.min_rate import MinRate, RateWindow, after
from fetchfleet.worker.errors import (
    DigestMismatchError,
    OverlongBodyError,
    TooSlowError,
    TruncatedBodyError,
)
from fetchfleet.worker.http.exchange import Answer
from fetchfleet.worker.http.wire import Room
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.util.clock import mono_s
from fetchfleet.worker.util.executors import CODING, run_in

IN_PLACE_BYTES = 16 * 1024
"""Up to this size a chunk is decoded or checked on the loop: a thread would cost more."""

STEP_PIECES = 256
"""Members and frames in one step: each takes time, even an empty one."""

SLACK_BYTES = 64 * 1024
"""A coding makes a body smaller, or larger by at most an eighth and this."""

MAX_CODING_CHARS = 100
"""Characters of a host's Content-Encoding in a result, at most."""

_UNPRINTABLE = re.compile(r"[^ -~]")

LARGE_WINDOWS = frozenset({"br", "zstd"})
"""Codings whose decoders hold megabytes while their body comes; those of gzip and deflate hold 32 KiB."""

MAX_LARGE_DECODERS = 1
"""With at most 18 MiB it fits beside everything else in a worker's first 100 MiB."""


class DecoderBudget:
    """The large decoders that a worker process may still start.

    Only requests that hold one of them offer br and zstd; all others offer gzip and deflate.
    """

    def __init__(self, free: int = MAX_LARGE_DECODERS) -> None:
        self.free = free


class DecoderSlot:
    """The share of one attempt in the budget: one large decoder, or none."""

    def __init__(self, budget: DecoderBudget) -> None:
        self._budget = budget
        self._taken = False

    def take(self) -> bool:
        """Take a large decoder. True if one was free, or if the slot has one already."""
        if not self._taken and self._budget.free:
            self._budget.free -= 1
            self._taken = True
        return self._taken

    def give_back(self) -> None:
        """Return the decoder to the budget; a second call does nothing."""
        if self._taken:
            self._budget.free += 1
            self._taken = False


def with_accept_encoding(request: Hop, fetch: Fetch, slot: DecoderSlot) -> Hop:
    """Return the request with the codings to offer; an Accept-Encoding of the caller stays.

    Takes a large decoder, if one is free, to offer the codings that need it.
    """
    if not fetch.decode or any(name.lower() == "accept-encoding" for name, _ in request.headers):
        return request
    offered = ACCEPT_ENCODING if slot.take() else SMALL_WINDOWS
    headers = (*request.headers, ("Accept-Encoding", offered))
    return msgspec.structs.replace(request, headers=headers)


Read = Callable[[], Awaitable[bytes]]
"""Returns the next piece of a body; empty at its end."""


class BodyPipeline:
    """The body of one response, in the form that its fetch wants. Raises UnknownCodingError."""

    def __init__(self, answer: Answer, fetch: Fetch, policy: LanePolicy, max_bytes: int = 0) -> None:
        self._answer = answer
        coded_bytes = answer.length_bytes
        encoding = answer.header("content-encoding")
        # An empty body has no coding, whatever the header says.
        coded = encoding and coded_bytes != 0 and answer.status != 204
        codings = codings_of(encoding) if coded else ()
        if codings and fetch.lines and not fetch.decode:
            raise UnknownCodingError(
                f"coded as {', '.join(codings)[:MAX_CODING_CHARS]}: lines need decode, too"
            )
        read = answer.read
        if policy.min_rate_bytes_per_s:
            read = _PacedBody(read, MinRate(policy.min_rate_bytes_per_s, policy.min_rate_window_s)).read
        stored_as = names_of(encoding) if coded else ()
        self._decoded: _DecodedBody | None = None
        self._large_decoder = False
        if codings and fetch.decode:
            chain = DecoderChain(codings, policy.max_decode_ratio)
            self._decoded = _DecodedBody(read, chain, coded_bytes, max_bytes)
            self._large_decoder = not LARGE_WINDOWS.isdisjoint(codings)
            read = self._decoded.read
            stored_as = tuple(name for name in stored_as if name not in codings)
        self._checker: JsonLinesChecker | None = None
        if fetch.lines:
            # A body without one of these ends with its connection, which may break (RFC 9112 §6.3).
            framed = coded_bytes is not None or answer.header("transfer-encoding") is not None
            self._checker = JsonLinesChecker(policy.max_line_bytes)
            read = _CheckedLines(read, self._checker, whole=framed or self._decoded is not None).read
        self.read = read
        """Returns the next bytes to store; empty at the end.

        Raises CodingError, BadLineError, CutLineError, DigestMismatchError, OverlongBodyError, TooSlowError
        or TruncatedBodyError.
        """
        self._as_sent = read == answer.read
        self.coding = _UNPRINTABLE.sub("?", ", ".join(stored_as))[:MAX_CODING_CHARS] if stored_as else None
        """The codings in which the body is stored, with names of Content-Encoding that are no coding."""
        self.length_bytes = coded_bytes if self._decoded is None else None
        """Length of the body as stored; None if unknown."""

    async def receive(self, room: Room) -> bytes | memoryview:
        """Return the next bytes to store, like `read`; they may have been received into the room."""
        return await (self._answer.receive(room) if self._as_sent else self.read())

    @property
    def decodes(self) -> bool:
        """True if the stored bytes differ from the bytes sent."""
        return self._decoded is not None

    @property
    def coding_ended(self) -> bool:
        """True if a coding has marked the end of the body."""
        return self._decoded is not None and self._decoded.ended

    @property
    def lines(self) -> int | None:
        """Number of records so far; None if the fetch does not ask for lines."""
        return self._checker.count if self._checker is not None else None

    def may_decode(self, slot: DecoderSlot) -> bool:
        """True if the slot has a large decoder or the body needs none. Otherwise return the decoder."""
        if not self._large_decoder:
            slot.give_back()
        return not self._large_decoder or slot.take()

    def host_digests(self, *, whole: bool, resumed: bool) -> tuple[Digest, ...]:
        """Return the digests that the host sent for these bytes; see digests_of."""
        header = self._answer.header
        if header("repr-digest") is None and header("content-digest") is None:
            return ()
        return digests_of(header, whole=whole, resumed=resumed)

    def check_coded(self, digests: Iterable[Digest]) -> None:
        """Compare the coded bytes, before they are decoded, with these digests."""
        if self._decoded is not None:
            self._decoded.expect(digests)


class _PacedBody:
    """A body that must not come below a rate."""

    def __init__(self, source: Read, rate: MinRate) -> None:
        self._source = source
        self._rate = rate
        self._window = RateWindow()

    async def read(self) -> bytes:
        asked_s = mono_s()
        chunk = await self._source()
        window = after(self._window, self._rate, len(chunk), mono_s() - asked_s) if chunk else self._window
        if window is None:
            rate = self._rate
            raise TooSlowError(f"less than {rate.bytes_per_s:g} bytes a second over {rate.window_s:g} s")
        self._window = window
        return chunk


class _DecodedBody:
    """A body whose codings are undone, step by step."""

    def __init__(self, source: Read, chain: DecoderChain, coded_bytes: int | None, max_bytes: int) -> None:
        self._source = source
        self._chain = chain
        self._coded_bytes = coded_bytes
        self._max_coded_bytes = max_bytes + max_bytes // 8 + SLACK_BYTES if max_bytes else 0
        self._received_bytes = 0
        self._pieces: Iterator[bytes] | None = None
        """The rest of the chunk that came last."""
        self._wanted: dict[str, bytes] = {}
        self._digests: dict[str, Any] = {}
        self.ended = False
        """Whether a coding has marked the end of the body."""

    def expect(self, digests: Iterable[Digest]) -> None:
        """Compare the coded bytes with these digests."""
        self._wanted = dict(digests)
        self._digests = {name: hashlib.new(name) for name in self._wanted}

    async def read(self) -> bytes:
        while True:
            in_place = False
            if self._pieces is None:
                chunk = await self._source()
                if not chunk:
                    self._finish()
                    return b""
                self._received_bytes += len(chunk)
                if self._max_coded_bytes and self._received_bytes > self._max_coded_bytes:
                    note = f"{self._received_bytes} coded bytes are more than {self._max_coded_bytes}"
                    raise OverlongBodyError(note)
                self._pieces = self._decode(chunk)
                in_place = len(chunk) <= IN_PLACE_BYTES  # even of a small chunk only the first step
            pieces = self._pieces
            step, more = _step(pieces) if in_place else await run_in(CODING, _step, pieces)
            if not more:
                self._pieces = None
            if step:
                return step

    def _decode(self, chunk: bytes) -> Iterator[bytes]:
        for digest in self._digests.values():
            digest.update(chunk)
        yield from self._chain.feed(chunk)

    def _finish(self) -> None:
        # Content-Length counts coded bytes (RFC 9110 §8.6).
        if self._coded_bytes is not None and self._received_bytes != self._coded_bytes:
            raise TruncatedBodyError(f"{self._received_bytes} of {self._coded_bytes} coded bytes came")
        self._chain.finish()
        self.ended = self._received_bytes > 0
        for name, digest in self._digests.items():
            if digest.digest() != self._wanted[name]:
                raise DigestMismatchError(f"its {name}, coded, is {digest.hexdigest()}")


class _CheckedLines:
    """A body whose lines are checked. whole: only a whole body ends without an error of the connection."""

    def __init__(self, source: Read, checker: JsonLinesChecker, *, whole: bool) -> None:
        self._source = source
        self._checker = checker
        self._whole = whole
        self._block: list[bytes] = []
        self._block_bytes = 0

    async def read(self) -> bytes:
        piece = await self._source()
        self._block.append(piece)
        self._block_bytes += len(piece)
        if piece and self._block_bytes < STEP_BYTES:
            return piece
        block, size_bytes, self._block, self._block_bytes = self._block, self._block_bytes, [], 0
        if piece:
            await run_in(CODING, self._feed, block)
        elif size_bytes > IN_PLACE_BYTES:
            await run_in(CODING, self._finish, block)
        else:
            self._finish(block)
        return piece

    def _feed(self, block: list[bytes]) -> None:
        self._checker.feed(b"".join(block))  # joined in the thread: many blocks may wait for one

    def _finish(self, block: list[bytes]) -> None:
        self._feed(block)
        self._checker.finish(whole=self._whole)


def _step(pieces: Iterator[bytes]) -> tuple[bytes, bool]:
    """Join pieces up to STEP_BYTES, or STEP_PIECES of them; returns whether there may be more."""
    step: list[bytes] = []
    step_bytes = 0
    for piece in pieces:
        step.append(piece)
        step_bytes += len(piece)
        if step_bytes >= STEP_BYTES or len(step) == STEP_PIECES:
            return b"".join(step), True
    return b"".join(step), False
