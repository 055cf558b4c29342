"""The body of an answer on its way from the wire to the sink: decoded and looked through, where asked for."""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, nullcontext
from typing import Any

import msgspec

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.worker.body.decoder_budget import LARGE, OneWindow
from fetchfleet.worker.body.decoders import (
    ACCEPT_ENCODING,
    SMALL_WINDOWS,
    STEP_BYTES,
    Chain,
    UnknownCodingError,
    codings_of,
)
from fetchfleet.worker.body.json_lines import Records
from fetchfleet.worker.body.min_rate import Floor, Window, after
from fetchfleet.worker.errors import (
    DigestMismatchError,
    OverlongBodyError,
    TooSlowError,
    TruncatedBodyError,
)
from fetchfleet.worker.http.base import Answer
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.util.clock import mono_s
from fetchfleet.worker.util.executors import CODING, run_in

IN_PLACE_BYTES = 16 * 1024
"""What is no larger is decoded, or checked, where it is: a thread would cost more than that."""

STEP_PIECES = 256
"""Members and frames take their time even where they bring nothing."""

SLACK_BYTES = 64 * 1024
"""Coding makes a body smaller, or hardly larger than an eighth and so much."""

MAX_CODING_CHARS = 100
"""A result holds no more of what a host calls its coding."""


def asked_for(request: Hop, fetch: Fetch, window: OneWindow) -> Hop:
    """The request, with the codings that its answer may have; the caller's own word on it stands.

    window: taken, if there is one, to be offered what needs it.
    """
    if not fetch.decode or any(name.lower() == "accept-encoding" for name, _ in request.headers):
        return request
    offered = ACCEPT_ENCODING if window.take() else SMALL_WINDOWS
    headers = (*request.headers, ("Accept-Encoding", offered))
    return msgspec.structs.replace(request, headers=headers)


class Body:
    """The body of one answer, as its fetch wants it kept.

    length_bytes: what is to be kept has so many bytes, None if that is not known; coding: it is kept in
    these codings, None if in none. Raises UnknownCodingError.
    """

    def __init__(self, answer: Answer, fetch: Fetch, policy: LanePolicy, max_bytes: int = 0) -> None:
        self._answer = answer
        self._coded_bytes = coded_bytes = answer.length_bytes
        self._max_coded_bytes = max_bytes + max_bytes // 8 + SLACK_BYTES if max_bytes else 0
        codings = codings_of(answer.header("content-encoding"))
        if coded_bytes == 0 or answer.status == 204:
            codings = ()  # nothing is nothing, in whatever coding
        if codings and fetch.lines and not fetch.decode:
            raise UnknownCodingError(
                f"coded as {', '.join(codings)[:MAX_CODING_CHARS]}: lines need decode, too"
            )
        self._chain = Chain(codings, policy.max_decode_ratio) if codings and fetch.decode else None
        self._large_window = self._chain is not None and not LARGE.isdisjoint(codings)
        self._wanted_digests: dict[str, bytes] = {}
        self._coded_digests: dict[str, Any] = {}
        self._floor = Floor(policy.min_rate_bytes_per_s, policy.min_rate_window_s)
        self._records = Records(policy.max_line_bytes) if fetch.lines else None
        self.coding = ", ".join(codings)[:MAX_CODING_CHARS] if codings and not fetch.decode else None
        self.length_bytes = coded_bytes if self._chain is None else None

    @property
    def decodes(self) -> bool:
        """Whether what is kept is not what was sent."""
        return self._chain is not None

    def may_come(self, window: OneWindow) -> bool:
        """Whether there is a window for its decoder, if it needs a large one; else ours is another's."""
        if not self._large_window:
            window.give_back()
        return not self._large_window or window.take()

    @property
    def lines(self) -> int | None:
        """How many records came; None where nobody asked."""
        return self._records.count if self._records is not None else None

    def check_coded(self, digests: Iterable[tuple[str, bytes]]) -> None:
        """Have the bytes as they come, before they are decoded, held against these; by hashlib's names."""
        self._wanted_digests = dict(digests)
        self._coded_digests = {name: hashlib.new(name) for name in self._wanted_digests}

    def pieces(self) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The bytes that are to be kept, as they come.

        Raises CodingError, BadLineError, CutLineError, DigestMismatchError, OverlongBodyError, TooSlowError
        or TruncatedBodyError.
        """
        as_sent = not self._floor.bytes_per_s and self._chain is None and self._records is None
        chunks = self._answer.chunks()
        return nullcontext(chunks) if as_sent else aclosing(self._looked_into(chunks))

    async def _looked_into(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async with AsyncExitStack() as stages:
            if self._floor.bytes_per_s:
                pieces = await stages.enter_async_context(aclosing(_paced(pieces, self._floor)))
            if self._chain is not None:
                pieces = await stages.enter_async_context(aclosing(self._decoded(pieces, self._chain)))
            if self._records is not None:
                pieces = await stages.enter_async_context(aclosing(self._checked(pieces, self._records)))
            async for piece in pieces:
                yield piece

    async def _decoded(self, chunks: AsyncIterator[bytes], chain: Chain) -> AsyncGenerator[bytes, None]:
        came_bytes = 0
        async for chunk in chunks:
            came_bytes += len(chunk)
            if self._max_coded_bytes and came_bytes > self._max_coded_bytes:
                raise OverlongBodyError(f"{came_bytes} coded bytes are more than {self._max_coded_bytes}")
            pieces = self._coded(chunk, chain)
            # However small a chunk is, no more than its first step is made on the loop.
            in_place = len(chunk) <= IN_PLACE_BYTES
            step, more = _step(pieces) if in_place else await run_in(CODING, _step, pieces)
            while step or more:
                if step:
                    yield step
                step, more = await run_in(CODING, _step, pieces) if more else (b"", False)
        # Content-Length counts coded bytes (RFC 9110 §8.6).
        if self._coded_bytes is not None and came_bytes != self._coded_bytes:
            raise TruncatedBodyError(f"{came_bytes} of {self._coded_bytes} coded bytes came")
        chain.finish()
        for name, digest in self._coded_digests.items():
            if digest.digest() != self._wanted_digests[name]:
                raise DigestMismatchError(f"its {name}, coded, is {digest.hexdigest()}")

    def _coded(self, chunk: bytes, chain: Chain) -> Iterator[bytes]:
        """See Chain.feed."""
        for digest in self._coded_digests.values():
            digest.update(chunk)
        yield from chain.feed(chunk)

    async def _checked(self, pieces: AsyncIterator[bytes], records: Records) -> AsyncGenerator[bytes, None]:
        block: list[bytes] = []
        block_bytes = 0
        async for piece in pieces:
            block.append(piece)
            block_bytes += len(piece)
            if block_bytes >= STEP_BYTES:
                await run_in(CODING, _check, records, block)
                block, block_bytes = [], 0
            yield piece
        last, whole = b"".join(block), self._is_framed()
        if len(last) <= IN_PLACE_BYTES:
            _check_last(records, last, whole)
        else:
            await run_in(CODING, _check_last, records, last, whole)

    def _is_framed(self) -> bool:
        """Whether the end of the body is more than the end of its connection (RFC 9112 §6.3)."""
        length_known = self._coded_bytes is not None
        return length_known or self._chain is not None or self._answer.header("transfer-encoding") is not None


async def _paced(chunks: AsyncIterator[bytes], floor: Floor) -> AsyncGenerator[bytes, None]:
    """The chunks; raises TooSlowError where they come below the floor."""
    window = Window()
    asked_s = mono_s()
    async for chunk in chunks:
        fast_enough = after(window, floor, len(chunk), mono_s() - asked_s)
        if fast_enough is None:
            raise TooSlowError(f"less than {floor.bytes_per_s:g} bytes a second over {floor.window_s:g} s")
        window = fast_enough
        yield chunk
        asked_s = mono_s()


def _step(pieces: Iterator[bytes]) -> tuple[bytes, bool]:
    """STEP_BYTES of what there is, up to one more piece, or STEP_PIECES; and whether there may be more."""
    step: list[bytes] = []
    step_bytes = 0
    for piece in pieces:
        step.append(piece)
        step_bytes += len(piece)
        if step_bytes >= STEP_BYTES or len(step) == STEP_PIECES:
            return b"".join(step), True
    return b"".join(step), False


def _check(records: Records, block: list[bytes]) -> None:
    """Joined here, in a thread: many blocks may be waiting for one."""
    records.feed(b"".join(block))


def _check_last(records: Records, block: bytes, whole: bool) -> None:  # noqa: FBT001 as run_in calls it
    records.feed(block)
    records.finish(whole=whole)
