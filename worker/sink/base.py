"""The port between a fetch and the place where bodies are stored. The sinks implement it.

`files/sink.py` stores each body as a file, `warc/sink.py` as a record of a WARC segment.
"""

from collections.abc import Callable, Collection
from concurrent.futures import Future
from io import FileIO
from typing import Any, NamedTuple, Protocol

from fetchfleet.jobs.contract.entry import Entry, Hop, PartialNote
from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.worker.http.exchange import Answer
from fetchfleet.worker.sink.disk_space import Space
from fetchfleet.worker.sink.index_entry import IndexEntry, StoredAt, StoredBody, Validators


class Expected(NamedTuple):
    """The properties that a body must have to be stored. None, 0 or empty: not checked."""

    length_bytes: int | None = None
    sha256: str | None = None
    max_bytes: int = 0
    digests: tuple[tuple[str, bytes], ...] = ()
    """Digests sent by the host, by hashlib's name of the algorithm."""

    @property
    def shows_the_whole(self) -> bool:
        """True if a body with these properties cannot be truncated."""
        return self.length_bytes is not None or self.sha256 is not None or bool(self.digests)


class StorageOptions(NamedTuple):
    """The options for storing a body."""

    remember: Validators | None = None
    """Index the body with these validators, so that `StoredBodies` finds it. None: do not index it."""
    durability: str = "none"
    """The policy's `durability`: none, file or full."""


class HttpExchange(NamedTuple):
    """The request and the response that a body belongs to."""

    request: Hop
    answer: Answer


class ResumePoint(Protocol):
    """A partial file of an earlier attempt, owned by this one: locked, and open at its end."""

    @property
    def file(self) -> FileIO:
        """The open file, `offset_bytes` long."""

    @property
    def offset_bytes(self) -> int:
        """Bytes of the body that are in the file."""

    @property
    def digests(self) -> dict[str, Any]:
        """Hash objects fed with the whole file, by hashlib's name; sha256 is always there."""

    def close(self) -> None:
        """Release the file; a later attempt may take it over."""

    async def drop(self) -> None:
        """Remove the file."""

    async def hash_by(self, names: Collection[str]) -> None:
        """Add digests by reading the file again. Raises OSError."""


class BodyWriter(Protocol):
    """A body on its way into the sink. Call `aclose` at its end, however it ends."""

    size_bytes: int

    @property
    def full(self) -> bool:
        """True if a block is in memory: call `drain` before the next write."""

    @property
    def resumable(self) -> bool:
        """True if enough bytes have come to resume the body later."""

    def room(self) -> memoryview | None:
        """Return the room for the next piece, if the body is a large one."""

    def write(self, piece: bytes | memoryview) -> None:
        """Add a piece; a memoryview is the beginning of `room`. Raises OverlongBodyError."""

    async def drain(self) -> None:
        """Hand what is in memory to the disk, once the block before is written. Raises OSError."""

    async def commit(self, may_place: Callable[[], bool]) -> StoredAt | None:
        """Check the body and store it. Returns None, with nothing stored, once may_place returns False."""

    async def sync(self) -> int:
        """Sync the bytes so far to disk; returns their number."""

    async def keep(self) -> int:
        """Leave the bytes so far for a later attempt; returns their number, 0 if none are left."""

    async def aclose(self) -> None:
        """Remove the body unless it was committed or kept, even if the caller is cancelled meanwhile."""


class StoredBodies(Protocol):
    """Bodies stored before, found by their fetch."""

    async def find(self, fetch: Fetch) -> StoredBody | None:
        """Return the file at the fetch's `dest`, else the unchanged body indexed for the fetch."""

    async def known(self, fetch: Fetch) -> IndexEntry | None:
        """Return the index entry of an unchanged body that is where the fetch would store it."""

    async def unchanged(self, entry: IndexEntry) -> bool:
        """Return whether the file of an entry is still the body that was stored."""

    async def at_dest(self, fetch: Fetch) -> StoredBody | None:
        """Return the file at the fetch's `dest`."""

    async def size_of(self, path: str) -> int | None:
        """Return the size of a file in bytes, None if there is no such file."""


class PartialFiles(Protocol):
    """Partial files that outlive their attempt, so that a later one resumes the body."""

    async def take_over(
        self,
        fetch_id: str,
        note: PartialNote,
        token: int,
        *,
        on_cancelled: Callable[[ResumePoint | None], None],
    ) -> ResumePoint | None:
        """Take over the partial file of a note under the lane's token; None if this disk has none.

        The file is hashed again, which takes as long as reading it. A caller cancelled meanwhile waits for
        the end, and `on_cancelled` receives the outcome.
        """


class Disk(Protocol):
    """The disk that bodies are stored on, and its upkeep."""

    @property
    def received_bytes(self) -> int:
        """Body bytes received since the start."""

    async def space(self) -> Space:
        """Return the free space. Raises OSError."""

    async def may_not_write(self) -> bool:
        """Return whether the worker lacks the permission to write to its own folders."""

    def refused(self, error: OSError) -> None:
        """Count a body that the disk did not take; the next `space` checks that the disk takes anything."""

    def forget(self, fetch_id: str, note: PartialNote) -> Future[None]:
        """Remove the partial file of a note in a thread: a large one takes a while."""

    async def sweep_partial_files(self) -> None:
        """Remove stale partial files every hour, until cancelled."""

    async def sweep_index(self) -> None:
        """Remove unused index entries, once."""


class Sink(Protocol):
    """Stores the bodies of one worker. Call open() first, and close() at the end."""

    @property
    def keeps_heads(self) -> bool:
        """True if the response to a HEAD request is stored too."""

    @property
    def disk(self) -> Disk:
        """The disk that bodies are stored on."""

    @property
    def stored(self) -> StoredBodies | None:
        """Bodies stored before; None if the sink has no index."""

    @property
    def partial_files(self) -> PartialFiles | None:
        """Partial files to resume; None if the sink stores complete bodies only."""

    def open(self) -> None:
        """Prepare the out folder. Raises OSError."""

    def close(self) -> None:
        """Release the out folder; a second call does nothing."""

    def refusal(self, fetch: Fetch) -> str | None:
        """Return the option of the fetch that this sink does not support; None if it supports all."""

    def writer(
        self,
        entry: Entry,
        token: int,
        expected: Expected,
        options: StorageOptions | None = None,
        resume: ResumePoint | None = None,
        exchange: HttpExchange | None = None,
    ) -> BodyWriter:
        """Return a writer for the body of a fetch; the lane's token keeps two owners' partial files apart.

        A body with a resume point continues at its end. exchange: required by sinks that store messages.
        """
