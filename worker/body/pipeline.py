"""The body of a response on its way from the connection to the sink, decoded and checked if necessary."""

import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import msgspec

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.contract.fetch import Fetch
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
from fetchfleet.worker.http.wire import GetBuffer
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.util.clock import mono_s
from fetchfleet.worker.util.executors import CODING, run_in

IN_PLACE_BYTES = 16 * 1024
"""A chunk up to this size is decoded or checked on the event loop: the hop to a thread would cost more."""

STEP_PIECES = 256
"""The maximum number of members and frames decoded in one step. Even an empty one takes time."""

SLACK_BYTES = 64 * 1024
"""A coding enlarges a body by at most an eighth plus this."""

MAX_CODING_CHARS = 100
"""The maximum length of a Content-Encoding in a result or a note, in characters."""

_UNPRINTABLE = re.compile(r"[^ -~]")

LARGE_WINDOWS = frozenset({"br", "zstd"})
"""Codings whose decoders use megabytes; those of gzip and deflate use 32 KiB."""

MAX_LARGE_DECODERS = 1
"""A large decoder uses up to 18 MiB. With one of them, a worker stays below 100 MiB."""


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
        self._held = False

    def acquire(self) -> bool:
        """Acquire a large decoder if one is free. Return whether the slot holds one."""
        if not self._held and self._budget.free:
            self._budget.free -= 1
            self._held = True
        return self._held

    def release(self) -> None:
        """Return the decoder to the budget. A second call does nothing."""
        if self._held:
            self._budget.free += 1
            self._held = False


def with_accept_encoding(request: Hop, fetch: Fetch, slot: DecoderSlot) -> Hop:
    """Return the request with an Accept-Encoding field, if the fetch sets `decode` but not that field.

    br and zstd are offered if a large decoder can be acquired.
    """
    if not fetch.decode or any(name.lower() == "accept-encoding" for name, _ in request.headers):
        return request
    offered = ACCEPT_ENCODING if slot.acquire() else SMALL_WINDOWS
    headers = (*request.headers, ("Accept-Encoding", offered))
    return msgspec.structs.replace(request, headers=headers)


Read = Callable[[], Awaitable[bytes]]
"""Returns the next piece of a body; empty at its end."""


class BodyPipeline:
    """The body of one response, decoded and checked as its fetch requires."""

    def __init__(self, answer: Answer, fetch: Fetch, policy: LanePolicy, max_bytes: int = 0) -> None:
        """Raise UnknownCodingError if the body cannot be decoded, or should be but `decode` is not set.

        max_bytes: the size limit of the stored body; 0 for none.
        """
        self._answer = answer
        rate = MinRate(policy.min_rate_bytes_per_s, policy.min_rate_window_s)
        source = _PacedBody(answer, rate) if rate.bytes_per_s else answer
        coded_bytes = answer.length_bytes
        encoding = answer.header("content-encoding")
        # An empty body has no coding, whatever the header says.
        coded = encoding and coded_bytes != 0 and answer.status != 204
        codings = codings_of(encoding) if coded else ()
        if codings and fetch.lines and not fetch.decode:
            names = ", ".join(codings)[:MAX_CODING_CHARS]
            raise UnknownCodingError(f"the body is coded as {names}; a fetch with lines must set decode too")
        read = source.read
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
            # A body without framing ends with its connection, so it may be truncated (RFC 9112 §6.3).
            framed = coded_bytes is not None or answer.header("transfer-encoding") is not None
            self._checker = JsonLinesChecker(policy.max_line_bytes)
            read = _CheckedLines(read, self._checker, complete=framed or self._decoded is not None).read
        self.read = read
        """Return the next bytes to store; empty at the end.

        Raises CodingError, BadLineError, CutLineError, DigestMismatchError, OverlongBodyError, TooSlowError
        or TruncatedBodyError.
        """
        self._receive = source.receive if read == source.read else None
        """Returns the next piece, maybe in the caller's buffer; None if the body is decoded or checked."""
        self.coding = _UNPRINTABLE.sub("?", ", ".join(stored_as))[:MAX_CODING_CHARS] if stored_as else None
        """The codings of the stored body, including unknown names of the Content-Encoding; None if none."""
        self.length_bytes = coded_bytes if self._decoded is None else None
        """Length of the body as stored; None if unknown."""

    async def receive(self, get_buffer: GetBuffer) -> bytes | memoryview:
        """Return the next bytes to store, like `read`, in the buffer of `get_buffer` if not decoded."""
        return await (self._receive(get_buffer) if self._receive is not None else self.read())

    @property
    def decodes(self) -> bool:
        """True if the stored bytes differ from the bytes sent."""
        return self._decoded is not None

    @property
    def coding_ended(self) -> bool:
        """True if the coding has confirmed the end of a body that is not empty."""
        return self._decoded is not None and self._decoded.ended

    @property
    def lines(self) -> int | None:
        """The number of records so far; None if the fetch does not set `lines`."""
        return self._checker.count if self._checker is not None else None

    def may_decode(self, slot: DecoderSlot) -> bool:
        """Return whether the slot has the decoder that the body needs; release it if the body needs none."""
        if not self._large_decoder:
            slot.release()
        return not self._large_decoder or slot.acquire()

    def host_digests(self, *, complete: bool, resumed: bool) -> tuple[Digest, ...]:
        """Return the digests that the host sent for these bytes; see digests_of."""
        header = self._answer.header
        if header("repr-digest") is None and header("content-digest") is None:
            return ()
        return digests_of(header, complete=complete, resumed=resumed)

    def check_coded(self, digests: Iterable[Digest]) -> None:
        """Compare the coded bytes with these digests, at the end of the body. Call it before reading."""
        if self._decoded is not None:
            self._decoded.expect(digests)


class _PacedBody:
    """A body with a minimum rate. `read` and `receive` raise TooSlowError."""

    def __init__(self, answer: Answer, rate: MinRate) -> None:
        self._answer = answer
        self._rate = rate
        self._window = RateWindow()

    async def read(self) -> bytes:
        asked_s = mono_s()
        piece = await self._answer.read()
        self._count(len(piece), mono_s() - asked_s)
        return piece

    async def receive(self, get_buffer: GetBuffer) -> bytes | memoryview:
        asked_s = mono_s()
        piece = await self._answer.receive(get_buffer)
        self._count(len(piece), mono_s() - asked_s)
        return piece

    def _count(self, size_bytes: int, waited_s: float) -> None:
        rate = self._rate
        window = after(self._window, rate, size_bytes, waited_s) if size_bytes else self._window
        if window is None:
            raise TooSlowError(f"less than {rate.bytes_per_s:g} bytes/s over {rate.window_s:g} s")
        self._window = window


class _DecodedBody:
    """A body that is decoded in steps."""

    def __init__(self, source: Read, chain: DecoderChain, coded_bytes: int | None, max_bytes: int) -> None:
        self._source = source
        self._chain = chain
        self._coded_bytes = coded_bytes
        self._max_coded_bytes = max_bytes + max_bytes // 8 + SLACK_BYTES if max_bytes else 0
        self._received_bytes = 0
        self._pieces: Iterator[bytes] | None = None
        """The decoded rest of the last chunk."""
        self._expected: dict[str, bytes] = {}
        """The digests of the coded bytes, by algorithm."""
        self._digests: dict[str, Any] = {}
        self.ended = False
        """True if the coding has confirmed the end of a body that is not empty."""

    def expect(self, digests: Iterable[Digest]) -> None:
        """Compare the coded bytes with these digests at the end."""
        self._expected = dict(digests)
        self._digests = {name: hashlib.new(name) for name in self._expected}

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
                in_place = len(chunk) <= IN_PLACE_BYTES  # the first step only: it may decode to GBs
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
            raise TruncatedBodyError(f"received {self._received_bytes} of {self._coded_bytes} coded bytes")
        self._chain.finish()
        self.ended = self._received_bytes > 0
        for name, digest in self._digests.items():
            if digest.digest() != self._expected[name]:
                raise DigestMismatchError(f"the {name} of the coded body is {digest.hexdigest()}")


class _CheckedLines:
    """A body whose lines are checked in blocks of about STEP_BYTES."""

    def __init__(self, source: Read, checker: JsonLinesChecker, *, complete: bool) -> None:
        """complete: the end of the source means that the body is complete."""
        self._source = source
        self._checker = checker
        self._complete = complete
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
        self._checker.feed(b"".join(block))  # joined here, in the thread, to spare the event loop

    def _finish(self, block: list[bytes]) -> None:
        self._feed(block)
        self._checker.finish(complete=self._complete)


def _step(pieces: Iterator[bytes]) -> tuple[bytes, bool]:
    """Join pieces up to STEP_BYTES, or STEP_PIECES of them. Return them, and whether more may follow."""
    step: list[bytes] = []
    step_bytes = 0
    for piece in pieces:
        step.append(piece)
        step_bytes += len(piece)
        if step_bytes >= STEP_BYTES or len(step) == STEP_PIECES:
            return b"".join(step), True
    return b"".join(step), False
