"""The buffer of a body: in memory while the body is smaller than a block, then in a partial file.

Small bodies are stored in batches: one thread stores all waiting bodies and reports them together. Several
threads would compete for the interpreter lock and the folder. More threads run only if the disk is slow or a
thread is stuck.
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from time import thread_time
from typing import Any, NamedTuple

from fetchfleet.worker.errors import (
    DigestMismatchError,
    OverlongBodyError,
    TruncatedBodyError,
    UndersizedBodyError,
)
from fetchfleet.worker.sink.base import Expected, ResumePoint
from fetchfleet.worker.sink.files.directory import Directory, partial_name
from fetchfleet.worker.sink.files.out_folder import OutFolder
from fetchfleet.worker.sink.files.partial_file import Block, PartialFile
from fetchfleet.worker.sink.index_entry import StoredAt
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import mono_s

SHA256 = "sha256"

BLOCK_BYTES = 384 * 1024
"""A body of fewer bytes stays in memory until it is complete."""

BUFFER_BYTES = BLOCK_BYTES + 256 * 1024
"""The size of a buffer to receive into. It has space for a large piece until the block is full."""

JOINED_BYTES = 4096
"""Smaller pieces are joined, to save the overhead of one object for each."""

RESUME_MIN_BYTES = 512 * 1024
"""The minimum size of a partial file to keep. A smaller body is cheaper to fetch again."""

Work = Callable[[Directory], StoredAt | None]


class BufferedBody(aio.Pending[StoredAt | None]):
    """A BodyWriter without `commit`, which the sinks add.

    At most two blocks are in memory: one is written to disk while the next one is received.
    """

    def __init__(
        self,
        disk: OutFolder,
        fetch_id: str,
        token: int,
        expected: Expected,
        resume: ResumePoint | None = None,
    ) -> None:
        super().__init__()
        self.size_bytes = 0
        self.full = False
        """A full block is in memory."""
        self._disk = disk
        self._fetch_id = fetch_id
        self._token = token
        self._expected = expected
        self._pieces: list[Block] = []
        """The pieces of the body that are in memory."""
        self._filled_bytes = 0
        """The size of `_pieces`."""
        self._receive_buffer: memoryview | None = None
        """The free rest of the buffer that is received into."""
        self._buffers: tuple[memoryview | None, memoryview | None] = (None, None)
        """The buffer that is received into, and the one that is being written to disk."""
        self._digests: dict[str, Any] = {}
        """Hash objects by hashlib's name; empty before the first block is written or the body is complete."""
        self._partial: PartialFile | None = None
        """The file on disk, once the body has reached the size of a block."""
        if resume is not None:
            self.size_bytes = resume.offset_bytes
            self._digests = {name: resume.digests[name] for name in (SHA256, *dict(expected.digests))}
            self._partial = PartialFile(disk, self._partial_name(), self._digests, resume)
        if expected.max_bytes and expected.length_bytes is not None:
            self._refuse_overlong(expected.length_bytes)

    @property
    def resumable(self) -> bool:
        """True if the body is large enough to be resumed by a later attempt."""
        return self.size_bytes >= RESUME_MIN_BYTES

    def receive_buffer(self) -> memoryview | None:
        """Return the buffer to receive the next piece into; None while the body is below a block."""
        if self._receive_buffer is None and self._partial is not None:
            self._receive_buffer = self._buffers[0] or memoryview(bytearray(BUFFER_BYTES))
            self._buffers = self._receive_buffer, self._buffers[1]
        return self._receive_buffer

    def write(self, piece: bytes | memoryview) -> None:
        """Add a piece: bytes, or the filled start of `receive_buffer`. Raises OverlongBodyError."""
        size_bytes = len(piece)
        self.size_bytes += size_bytes
        self._disk.received_bytes += size_bytes
        self._filled_bytes += size_bytes
        if self._expected.max_bytes:
            self._refuse_overlong(self.size_bytes)
        self.full = self._filled_bytes >= BLOCK_BYTES
        if isinstance(piece, memoryview):
            assert self._receive_buffer is not None
            self._receive_buffer = self._receive_buffer[size_bytes:]
            self._pieces.append(piece)
        elif size_bytes >= JOINED_BYTES:
            self._pieces.append(piece)
        elif self._pieces and isinstance(self._pieces[-1], bytearray):
            self._pieces[-1] += piece
        else:
            self._pieces.append(bytearray(piece))

    async def drain(self) -> None:
        """Start writing the block in memory, once the previous block is written. Raises OSError."""
        if self._partial is None:
            self._digests = self._new_digests()
            reserved_bytes = self._reserve()
            name = self._partial_name()
            self._partial = PartialFile(self._disk, name, self._digests, reserved_bytes=reserved_bytes)
        await self._partial.written()
        if self._pieces:
            block, self._pieces, self._filled_bytes, self.full = self._pieces, [], 0, False
            self._buffers, self._receive_buffer = self._buffers[::-1], None
            self._partial.start(block)

    async def write_at(self, at: int, block: list[Block]) -> None:
        """Write a block at an offset, ahead of bytes that are still missing; one call at a time.

        Call `extend` when none is missing before the end of the block. Raises OSError.
        """
        if self._partial is None:
            await self.drain()
        assert self._partial is not None
        await self._partial.written()
        self._partial.start(block, at)
        self._disk.received_bytes += sum(map(len, block))
        await self._partial.written()

    def extend(self, size_bytes: int) -> None:
        """Set the size to that of the start of the body of which `write_at` has written every byte."""
        assert self._partial is not None
        self.size_bytes = self._partial.whole_bytes = size_bytes

    async def join(self) -> None:
        """Hash the rest of a body that `write_at` has written. Raises OSError."""
        while self._partial is not None and self._partial.unhashed_bytes:
            await self.write_at(self.size_bytes, [])

    async def sync(self) -> int:
        """Sync the bytes so far to disk. Returns their number. Raises OSError."""
        size_bytes = self.size_bytes
        await self.drain()
        assert self._partial is not None
        await self._partial.sync()
        return size_bytes

    async def keep(self) -> int:
        """Keep the partial file for a later attempt. Returns its size in bytes, 0 if it is not kept."""
        if self._partial is None or not self.resumable:
            return 0
        return await aio.run_to_end(self._keep(self._partial))

    async def _keep(self, large: PartialFile) -> int:
        try:
            await self.drain()
            await large.written()
            if not large.is_open:  # closed by commit
                return 0
            await large.close(synced=True)
        except OSError:
            return 0
        large.on_disk = False
        return self.size_bytes

    async def aclose(self) -> None:
        """Remove the partial file unless it was committed or kept, even if the caller is cancelled."""
        if self._partial is not None:
            await aio.run_to_end(self._partial.drop())

    def _partial_name(self) -> str:
        return partial_name(self._fetch_id, self._token)

    def _reserve(self) -> int:
        """Return the offset of the body in a new partial file."""
        return 0

    def _new_digests(self) -> dict[str, Any]:
        """Return new hash objects for the whole body, by hashlib's name."""
        digests = {SHA256: hashlib.sha256()}
        for name, _ in self._expected.digests:
            if name != SHA256:
                digests[name] = hashlib.new(name)
        return digests

    def _checked(self) -> str:
        """Check the complete body, and return its sha256 in hex. Runs off the loop if the body is in memory.

        Raises TruncatedBodyError, UndersizedBodyError or DigestMismatchError.
        """
        expected = self._expected
        if expected.length_bytes is not None and self.size_bytes != expected.length_bytes:
            raise TruncatedBodyError(f"received {self.size_bytes} of {expected.length_bytes} bytes")
        if self.size_bytes < expected.min_bytes:
            raise UndersizedBodyError(self.size_bytes, expected.min_bytes)
        if self._partial is None:
            self._digests = self._new_digests()
            for digest in self._digests.values():
                for piece in self._pieces:
                    digest.update(piece)
        sha256: str = self._digests[SHA256].hexdigest()
        if expected.sha256 is not None and sha256 != expected.sha256:
            raise DigestMismatchError(f"the body's sha256 is {sha256}, expected {expected.sha256}")
        for name, digest in expected.digests:
            if self._digests[name].digest() != digest:
                received = self._digests[name].hexdigest()
                raise DigestMismatchError(f"the body's {name} is {received}, the host sent {digest.hex()}")
        return sha256

    def _refuse_overlong(self, size_bytes: int) -> None:
        if self._expected.max_bytes and size_bytes > self._expected.max_bytes:
            raise OverlongBodyError(f"{size_bytes} bytes exceed max_bytes {self._expected.max_bytes}")


class BatchTimings(NamedTuple):
    """The limits of a thread's turn, and the thresholds of a stuck and of a slow disk."""

    turn_s: float = 0.005
    """The duration of a turn. At its end the thread reports the bodies it has stored."""
    turn_bodies: int = 32
    """Maximum bodies in a turn. Each may need folders of its own, which stay open until the turn ends."""
    stuck_s: float = 0.05
    """The time without a stored body after which running threads count as stuck and another starts."""
    slow_s: float = 0.002
    """The time per body from which a turn counts as slow. A slow disk gets more threads."""
    slow_turns: int = 8
    """Consecutive slow turns before the disk counts as slow: a single one may have waited for the CPU."""
    slow_for_s: float = 1.0
    """The time until a slow disk is tried with one thread again: the threads may have delayed each other."""


class _Turn:
    """A turn of a thread. Records its start by the clock and in CPU time of the loop's thread."""

    def __init__(self) -> None:
        self._began_s, self._used_s = mono_s(), thread_time()

    def waited_s(self) -> float:
        """Return the turn's duration less the loop's CPU time, for which the turn may have waited."""
        return mono_s() - self._began_s - (thread_time() - self._used_s)


SmallBody = aio.Pending[StoredAt | None]
"""A body that waits to be stored, or whose outcome is not reported yet."""


class SmallBatch:
    """Stores small bodies in threads, at most `max_threads` at once. Call its methods on the loop."""

    def __init__(
        self, directory: Directory, threads: Executor, max_threads: int, timings: BatchTimings | None = None
    ) -> None:
        self._directory = directory
        self._threads = threads
        self._max_threads = max_threads
        self._timings = timings or BatchTimings()
        self._waiting: deque[tuple[SmallBody, Work]] = deque()
        self._unconfirmed: deque[tuple[SmallBody, StoredAt | None, int]] = deque()
        """Stored bodies that are not confirmed yet, each with the `opening` of its out folder."""
        self._unreported: deque[SmallBody] = deque()
        """Bodies whose outcome is not reported yet."""
        self._turns: set[_Turn] = set()
        """The running turns."""
        self._stuck: set[_Turn] = set()
        """The running turns that are stuck."""
        self._progress = False
        """A body was reported since the last check."""
        self._slow_turns = 0
        self._slow_until_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, body: SmallBody, work: Work) -> None:
        """Run the work in a thread, and set its outcome on the body."""
        self._waiting.append((body, work))
        if not self._turns or self._stuck or self._slow_until_s:  # else the running thread stores it
            self._start_turn(asyncio.get_running_loop())

    def _start_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start one more turn if bodies wait and fewer turns run than should."""
        wanted = self._max_threads if mono_s() < self._slow_until_s else 1
        running = len(self._turns)
        pending = self._waiting or self._unconfirmed
        if pending and running < self._max_threads and running - len(self._stuck) < wanted:
            turn = _Turn()
            self._turns.add(turn)
            loop.call_soon(self._submit, loop, turn)  # later, to store all bodies of this loop iteration

    def _submit(self, loop: asyncio.AbstractEventLoop, turn: _Turn) -> None:
        try:
            self._threads.submit(self._take_turn, loop, turn)
        except RuntimeError as error:  # the threads have been shut down
            self._turns.remove(turn)
            while self._waiting:
                body, _ = self._waiting.popleft()
                body.set_error(error)
                self._unreported.append(body)
            self._notify()
            return
        if self._timer is None:
            self._timer = loop.call_later(self._timings.stuck_s, self._check_progress, loop)

    def _take_turn(self, loop: asyncio.AbstractEventLoop, turn: _Turn) -> None:
        """Store the waiting bodies one by one, and confirm them together. Runs off the loop."""
        timings, count = self._timings, 0
        ends_s = mono_s() + timings.turn_s
        try:
            self._confirm()  # the bodies of a stuck turn
            with self._directory.cached_view(timings.turn_s) as directory, suppress(IndexError):
                while count < timings.turn_bodies and mono_s() < ends_s:
                    body, work = self._waiting.popleft()
                    count += 1
                    try:
                        stored = work(directory)
                    except BaseException as error:  # noqa: BLE001 the body's own error, of any kind
                        body.set_error(error)
                        self._unreported.append(body)
                    else:
                        self._unconfirmed.append((body, stored, directory.opening))
            self._confirm()
        finally:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._end_turn, loop, turn, count)

    def _confirm(self) -> None:
        """Check once, for all stored bodies, that their paths still lead into the open out folder."""
        bodies = []
        with suppress(IndexError):  # other threads take bodies too
            while True:
                bodies.append(self._unconfirmed.popleft())
        in_place = bool(bodies) and self._directory.in_place()
        for body, stored, opening in bodies:
            if in_place and opening == self._directory.opening:
                body.set_result(stored)
            else:
                body.set_error(self._directory.out_of_place())
            self._unreported.append(body)

    def _end_turn(self, loop: asyncio.AbstractEventLoop, turn: _Turn, count: int) -> None:
        """End a turn that has stored `count` bodies, and report them."""
        timings = self._timings
        if len(self._turns) == 1 and count:
            self._slow_turns = self._slow_turns + 1 if turn.waited_s() >= count * timings.slow_s else 0
            if self._slow_turns == timings.slow_turns:
                self._slow_turns, self._slow_until_s = 0, mono_s() + timings.slow_for_s
        self._turns.remove(turn)
        self._stuck.discard(turn)
        self._notify()
        self._start_turn(loop)

    def _check_progress(self, loop: asyncio.AbstractEventLoop) -> None:
        """Report stored bodies. Mark the running turns as stuck if there is none since the last check."""
        self._notify()
        if not self._progress:
            self._stuck.update(self._turns)
        self._progress = False
        self._start_turn(loop)
        self._timer = (
            loop.call_later(self._timings.stuck_s, self._check_progress, loop) if self._turns else None
        )

    def _notify(self) -> None:
        while self._unreported:
            self._progress = True
            self._unreported.popleft().notify()
