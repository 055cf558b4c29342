"""A body on its way to disk: in memory while it is smaller than a block, then in a partial file.

Small bodies are stored in batches: one thread takes all that wait, and reports them together. Several threads
would compete for the interpreter and for the folder. Only on a slow disk does each body get a thread, and if
one thread is stuck, another takes the waiting bodies.
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from time import thread_time
from typing import Any, NamedTuple

from fetchfleet.worker.errors import DigestMismatchError, OverlongBodyError, TruncatedBodyError
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

ROOM_BYTES = BLOCK_BYTES + 256 * 1024
"""A block that pieces are received into: what is left of it before it is full takes a large piece."""

JOINED_BYTES = 4096
"""Smaller pieces are joined, because each one in a list has the overhead of an object."""

Work = Callable[[Directory], StoredAt | None]


class BufferedBody(aio.Pending[StoredAt | None]):
    """See BodyWriter. At most two blocks are in memory: one is written while the next one fills.

    It has digests and checks, but no final name: the sinks give it one. The token of the lane keeps the
    partial files of two owners apart.
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
        """True if a block is in memory."""
        self._disk = disk
        self._fetch_id = fetch_id
        self._token = token
        self._expected = expected
        self._pieces: list[Block] = []
        """The pieces of the body that are in memory."""
        self._filled_bytes = 0
        self._room: memoryview | None = None
        """What is left of the block that pieces are received into."""
        self._blocks: tuple[memoryview | None, memoryview | None] = (None, None)
        """That block, and the one that is being written."""
        self._digests: dict[str, Any] = {}
        """Hash objects by name, from the first block or the end of the body on."""
        self._partial: PartialFile | None = None
        """Takes the body block by block, once it has reached a block."""
        if resume is not None:
            self.size_bytes = resume.offset_bytes
            self._digests = {name: resume.digests[name] for name in (SHA256, *dict(expected.digests))}
            self._partial = PartialFile(disk, self._partial_name(), self._digests, resume)
        if expected.max_bytes and expected.length_bytes is not None:
            self._refuse_overlong(expected.length_bytes)

    def room(self) -> memoryview | None:
        """Return the room for the next piece, if the body is a large one."""
        if self._room is None and self._partial is not None:
            self._room = self._blocks[0] or memoryview(bytearray(ROOM_BYTES))
            self._blocks = self._room, self._blocks[1]
        return self._room

    def write(self, piece: bytes | memoryview) -> None:
        """Add a piece; a memoryview is the beginning of `room`. Raises OverlongBodyError."""
        size_bytes = len(piece)
        self.size_bytes += size_bytes
        self._disk.received_bytes += size_bytes
        self._filled_bytes += size_bytes
        if self._expected.max_bytes:
            self._refuse_overlong(self.size_bytes)
        self.full = self._filled_bytes >= BLOCK_BYTES
        if isinstance(piece, memoryview):
            assert self._room is not None
            self._room = self._room[size_bytes:]
            self._pieces.append(piece)
        elif size_bytes >= JOINED_BYTES:
            self._pieces.append(piece)
        elif self._pieces and isinstance(self._pieces[-1], bytearray):
            self._pieces[-1] += piece
        else:
            self._pieces.append(bytearray(piece))

    async def drain(self) -> None:
        """Hand what is in memory to the disk, once the block before is written. Raises OSError."""
        if self._partial is None:
            self._digests = self._new_digests()
            self._partial = PartialFile(self._disk, self._partial_name(), self._digests)
        await self._partial.written()
        if self._pieces:
            block, self._pieces, self._filled_bytes, self.full = self._pieces, [], 0, False
            self._blocks, self._room = self._blocks[::-1], None
            self._partial.start(block)

    async def sync(self) -> int:
        """Sync the bytes so far to disk; returns their number. Raises OSError."""
        size_bytes = self.size_bytes
        await self.drain()
        assert self._partial is not None
        await self._partial.sync()
        return size_bytes

    async def aclose(self) -> None:
        """Remove the body unless it was committed or kept, even if the caller is cancelled meanwhile."""
        if self._partial is not None:
            await aio.run_to_end(self._partial.drop())

    def _partial_name(self) -> str:
        return partial_name(self._fetch_id, self._token)

    def _new_digests(self) -> dict[str, Any]:
        """Return the hash objects that are to be fed with the whole body."""
        digests = {SHA256: hashlib.sha256()}
        for name, _ in self._expected.digests:
            if name != SHA256:
                digests[name] = hashlib.new(name)
        return digests

    def _checked(self) -> str:
        """Return the sha256 of the whole body; hashes it, off the loop, if it is in memory.

        Raises TruncatedBodyError or DigestMismatchError.
        """
        expected = self._expected
        if expected.length_bytes is not None and self.size_bytes != expected.length_bytes:
            raise TruncatedBodyError(f"{self.size_bytes} of {expected.length_bytes} bytes came")
        if self._partial is None:
            self._digests = self._new_digests()
            for digest in self._digests.values():
                for piece in self._pieces:
                    digest.update(piece)
        sha256: str = self._digests[SHA256].hexdigest()
        if expected.sha256 is not None and sha256 != expected.sha256:
            raise DigestMismatchError(f"sha256 is {sha256}")
        for name, digest in expected.digests:
            if self._digests[name].digest() != digest:
                raise DigestMismatchError(f"the host says {name} {digest.hex()}; sha256 is {sha256}")
        return sha256

    def _refuse_overlong(self, size_bytes: int) -> None:
        if self._expected.max_bytes and size_bytes > self._expected.max_bytes:
            raise OverlongBodyError(f"{size_bytes} bytes are more than {self._expected.max_bytes}")


class BatchTimings(NamedTuple):
    """The limits of a turn of a thread, and of a disk that counts as stuck or slow."""

    turn_s: float = 0.005
    """After that, a thread reports what it has done and starts anew."""
    turn_bodies: int = 32
    """Bodies a turn at most: each may have folders of its own, held open until the turn ends."""
    stuck_s: float = 0.05
    """Threads that have finished nothing for so long are stuck, and another one starts."""
    slow_s: float = 0.002
    """A disk that needs so long for a body is slow; many threads wait for it better than one."""
    slow_turns: int = 8
    """Slow turns in a row before the disk counts as slow: one may have waited for the processor."""
    slow_for_s: float = 1.0
    """After that, one thread tries again: many may have waited for each other, not for the disk."""


class _Turn:
    """A turn of a thread: when it began, on the clock and in processor time of the loop."""

    def __init__(self) -> None:
        self._began_s, self._used_s = mono_s(), thread_time()

    def waited_s(self) -> float:
        """Return its duration less the processor time of the loop, for which it may have had to wait."""
        return mono_s() - self._began_s - (thread_time() - self._used_s)


SmallBody = aio.Pending[StoredAt | None]
"""A body that waits to be stored, or whose outcome is not reported yet."""


class SmallBatch:
    """Stores small bodies in at most `max_threads` of the threads. Its methods run on the loop."""

    def __init__(
        self, directory: Directory, threads: Executor, max_threads: int, timings: BatchTimings | None = None
    ) -> None:
        self._directory = directory
        self._threads = threads
        self._max_threads = max_threads
        self._timings = timings or BatchTimings()
        self._waiting: deque[tuple[SmallBody, Work]] = deque()
        self._named: deque[tuple[SmallBody, StoredAt | None, int]] = deque()
        """Stored bodies that are not confirmed yet, each with the opening of the out folder that it is in."""
        self._done: deque[SmallBody] = deque()
        self._turns: set[_Turn] = set()
        self._stuck: set[_Turn] = set()
        """The turns that are stuck."""
        self._progress = False
        """Whether any body has been stored since the last look."""
        self._slow_turns = 0
        self._slow_until_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, body: SmallBody, work: Work) -> None:
        """Run the work in a thread, with the directory held open; the body gets its outcome."""
        self._waiting.append((body, work))
        if not self._turns or self._stuck or self._slow_until_s:  # else the one thread at work takes it
            self._start_turn(asyncio.get_running_loop())

    def _start_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start one more thread if there are bodies for it and fewer are at work than should be."""
        wanted = self._max_threads if mono_s() < self._slow_until_s else 1
        at_work = len(self._turns)
        pending = self._waiting or self._named
        if pending and at_work < self._max_threads and at_work - len(self._stuck) < wanted:
            turn = _Turn()
            self._turns.add(turn)
            loop.call_soon(self._submit, loop, turn)  # so that it takes all bodies of this turn of the loop

    def _submit(self, loop: asyncio.AbstractEventLoop, turn: _Turn) -> None:
        try:
            self._threads.submit(self._take_turn, loop, turn)
        except RuntimeError as error:  # the threads have been shut down
            self._turns.remove(turn)
            while self._waiting:
                body, _ = self._waiting.popleft()
                body.set_error(error)
                self._done.append(body)
            self._notify()
            return
        if self._timer is None:
            self._timer = loop.call_later(self._timings.stuck_s, self._look, loop)

    def _take_turn(self, loop: asyncio.AbstractEventLoop, turn: _Turn) -> None:
        """Store one waiting body after the other, and confirm them together; runs off the loop."""
        timings, done = self._timings, 0
        ends_s = mono_s() + timings.turn_s
        try:
            self._confirm()  # bodies of a turn that is stuck
            with self._directory.held_open(timings.turn_s) as directory, suppress(IndexError):
                while done < timings.turn_bodies and mono_s() < ends_s:
                    body, work = self._waiting.popleft()
                    done += 1
                    try:
                        stored = work(directory)
                    except BaseException as error:  # noqa: BLE001 the body's own error, of any kind
                        body.set_error(error)
                        self._done.append(body)
                    else:
                        self._named.append((body, stored, directory.opening))
            self._confirm()
        finally:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._end_turn, loop, turn, done)

    def _confirm(self) -> None:
        """Check, once for all that are named, that bodies are where their results will say."""
        named = []
        with suppress(IndexError):
            while True:
                named.append(self._named.popleft())
        in_place = self._directory.in_place() if named else True
        for body, stored, opening in named:
            if in_place and opening == self._directory.opening:
                body.set_result(stored)
            else:
                body.set_error(self._directory.out_of_place())
            self._done.append(body)

    def _end_turn(self, loop: asyncio.AbstractEventLoop, turn: _Turn, done: int) -> None:
        timings = self._timings
        if len(self._turns) == 1 and done:
            self._slow_turns = self._slow_turns + 1 if turn.waited_s() >= done * timings.slow_s else 0
            if self._slow_turns == timings.slow_turns:
                self._slow_turns, self._slow_until_s = 0, mono_s() + timings.slow_for_s
        self._turns.remove(turn)
        self._stuck.discard(turn)
        self._notify()
        self._start_turn(loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """While threads are at work: report stored bodies, and mark the turns as stuck without progress."""
        self._notify()
        if not self._progress:
            self._stuck.update(self._turns)
        self._progress = False
        self._start_turn(loop)
        self._timer = loop.call_later(self._timings.stuck_s, self._look, loop) if self._turns else None

    def _notify(self) -> None:
        while self._done:
            self._progress = True
            self._done.popleft().notify()
