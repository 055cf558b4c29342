"""The interface of a sink, which stores bodies.

`files/sink.py` stores each body as a file, `objects/sink.py` as an object of a store, `warc/sink.py` as a
record of a WARC segment.
"""

from collections.abc import Callable, Collection
from concurrent.futures import Future
from io import FileIO
from typing import Any, NamedTuple, Protocol

from fetchfleet.jobs.contract.entry import Entry, Hop, PartialNote
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.worker.http.exchange import Answer
from fetchfleet.worker.sink.body_index import BodyIndex
from fetchfleet.worker.sink.disk_space import Space
from fetchfleet.worker.sink.index_entry import StoredAt, Validators


class Expected(NamedTuple):
    """The properties that a body must have to be stored."""

    length_bytes: int | None = None
    """None: not checked."""
    sha256: str | None = None
    """The expected digest in hex; None: not checked."""
    max_bytes: int = 0
    """0: no limit."""
    digests: tuple[tuple[str, bytes], ...] = ()
    """Digests sent by the host: pairs of hashlib's algorithm name and the digest."""
    min_bytes: int = 0

    @property
    def detects_truncation(self) -> bool:
        """True if a truncated body fails these checks."""
        return self.length_bytes is not None or self.sha256 is not None or bool(self.digests)


class StorageOptions(NamedTuple):
    """The options for storing a body."""

    remember: Validators | None = None
    """Index the body under these validators, so that `Sink.stored` finds it. None: do not index it."""
    durability: str = "none"
    """The policy's `durability`: "none", "file" or "full"."""


class HttpExchange(NamedTuple):
    """The request and the response of a body."""

    request: Hop
    answer: Answer


class ResumePoint(Protocol):
    """A partial file of an earlier attempt that this attempt has locked, open at its end."""

    @property
    def file(self) -> FileIO:
        """The open file; its size is `offset_bytes`."""

    @property
    def offset_bytes(self) -> int:
        """Bytes of the body in the file."""

    @property
    def digests(self) -> dict[str, Any]:
        """Hash objects that include the whole file, by hashlib's name; always has sha256."""

    def close(self) -> None:
        """Close and unlock the file, so that a later attempt can take it over."""

    async def drop(self) -> None:
        """Remove the file."""

    async def add_digests(self, names: Collection[str]) -> None:
        """Read the file again to add these algorithms to `digests`. Raises OSError."""


class BodyWriter(Protocol):
    """Writes one body to the sink. Call `aclose` at the end in every case."""

    size_bytes: int
    """Bytes of the body so far, including those of the resume point."""

    @property
    def full(self) -> bool:
        """True if a full block is in memory. Call `drain` before the next write."""

    @property
    def resumable(self) -> bool:
        """True if the body is large enough to be resumed by a later attempt."""

    def receive_buffer(self) -> memoryview | None:
        """Return the buffer to receive the next piece into; None while the body is below a block."""

    def write(self, piece: bytes | memoryview) -> None:
        """Add a piece: bytes, or the filled start of `receive_buffer`. Raises OverlongBodyError."""

    async def drain(self) -> None:
        """Start writing the block in memory, once the previous block is written. Raises OSError."""

    async def commit(self, may_place: Callable[[], bool]) -> StoredAt | None:
        """Check the body and store it. Returns None and stores nothing if `may_place` returns False."""

    async def write_at(self, at: int, block: list[bytes | bytearray | memoryview]) -> None:
        """Write a block at an offset, ahead of bytes that are still missing; one call at a time.

        Call `extend` when none is missing before the end of the block. Raises OSError.
        """

    def extend(self, size_bytes: int) -> None:
        """Set the size to that of the start of the body of which `write_at` has written every byte."""

    async def join(self) -> None:
        """Hash the rest of a body that `write_at` has written. Raises OSError."""

    async def sync(self) -> int:
        """Sync the bytes so far to disk. Returns their number."""

    async def keep(self) -> int:
        """Keep the partial file for a later attempt. Returns its size in bytes, 0 if it is not kept."""

    async def aclose(self) -> None:
        """Remove the partial file unless it was committed or kept, even if the caller is cancelled."""


class PartialFiles(Protocol):
    """The partial files of earlier attempts, from which a later attempt resumes the body."""

    async def take_over(
        self,
        fetch_id: str,
        note: PartialNote,
        token: int,
        *,
        on_cancelled: Callable[[ResumePoint | None], None],
    ) -> ResumePoint | None:
        """Lock the partial file of a note and rename it for the lane's token; None if this disk lacks it.

        Reads the whole file to hash it. If the caller is cancelled, the cancellation is delayed until the
        takeover ends, and `on_cancelled` receives its outcome.
        """


class Disk(Protocol):
    """The disk on which bodies are stored, and its upkeep."""

    @property
    def received_bytes(self) -> int:
        """Body bytes received since the start."""

    async def space(self) -> Space:
        """Return the free space. Raises OSError."""

    async def may_not_write(self) -> bool:
        """Return whether the worker lacks the permission to write to its own folders."""

    def refused(self, error: OSError) -> None:
        """Count a body whose write failed. The next `space` checks with a test file if writes work."""

    def remove_partial_file(self, fetch_id: str, note: PartialNote) -> Future[None]:
        """Remove the partial file of a note, in a thread."""

    async def sweep_partial_files(self) -> None:
        """Remove stale partial files every hour, until cancelled."""

    async def sweep_index(self) -> None:
        """Remove unused index entries, once."""


class Sink(Protocol):
    """Stores the bodies of one worker. Call open() first, and close() at the end."""

    @property
    def stores_head_responses(self) -> bool:
        """True if the response to a HEAD request is stored too."""

    @property
    def store(self) -> str | None:
        """The URL of the object store for bodies, without secrets; None if they are in the out folder."""

    @property
    def disk(self) -> Disk:
        """The disk on which bodies are stored, or on which they are spooled."""

    @property
    def stored(self) -> BodyIndex | None:
        """Bodies stored earlier; None if the sink has no index."""

    @property
    def partial_files(self) -> PartialFiles | None:
        """Partial files to resume; None if the sink cannot resume bodies."""

    def open(self) -> None:
        """Prepare the out folder. Raises OSError."""

    def close(self) -> None:
        """Release the out folder; a second call does nothing."""

    def refusal(self, fetch: Fetch) -> str | None:
        """Return why this sink does not support an option of the fetch; None if it supports all."""

    def writer(
        self,
        entry: Entry,
        token: int,
        expected: Expected,
        options: StorageOptions | None = None,
        resume: ResumePoint | None = None,
        exchange: HttpExchange | None = None,
    ) -> BodyWriter:
        """Return a writer for the body of a fetch.

        token: the lane's token; it is part of the partial file's name, so that two owners use two files.
        resume: the partial file to continue. exchange: required by sinks that store whole HTTP messages.
        """
