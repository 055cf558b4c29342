"""The seam between an attempt and where bodies go: what it needs of a sink, and no more."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, Self

from fetchfleet.jobs.contract.entry import Entry, Hop
from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.worker.http.base import Answer
from fetchfleet.worker.sink.files.takeover import Taken
from fetchfleet.worker.sink.index_entry import Validators


class Note(NamedTuple):
    """Under which key a body is remembered, and with what."""

    key: str
    validators: Validators


class Place(NamedTuple):
    """The name of a part, the path that it is to have, and what goes with that.

    note: with what it is remembered, None if it is not. replace: also where a file stands.
    """

    part: str
    path: str
    note: Note | None = None
    durability: str = "none"
    replace: bool = True


class Kept(NamedTuple):
    """A body in its place; path is relative to the out folder.

    offset, length: of its record in that file, where it is not alone in it.
    """

    path: str
    size_bytes: int
    sha256: str
    offset: int | None = None
    length: int | None = None


class Expected(NamedTuple):
    """What a body must be to be kept; None or 0 where nothing is known.

    digests: what its host says of it, by hashlib's name of the algorithm.
    """

    length_bytes: int | None = None
    sha256: str | None = None
    max_bytes: int = 0
    digests: tuple[tuple[str, bytes], ...] = ()

    @property
    def shows_the_whole(self) -> bool:
        """Whether a body that is as expected cannot lack its end."""
        return self.length_bytes is not None or self.sha256 is not None or bool(self.digests)


class Care(NamedTuple):
    """What is done for a body beyond keeping it.

    remember: `old` and `known` are to find it, with these, when the same is asked for again. durability: as
    the policy says.
    """

    remember: Validators | None = None
    durability: str = "none"


class Came(NamedTuple):
    """The exchange that a body comes with."""

    request: Hop
    answer: Answer


class Coming(Protocol):
    """A body on its way. An async context manager: what is not committed is gone after it."""

    size_bytes: int

    @property
    def worth_keeping(self) -> bool:
        """Whether enough of it has come to be gone on with later."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def write(self, chunk: bytes) -> None:
        """Take a chunk. Raises OverlongBodyError or OSError."""

    async def commit(self, may_place: Callable[[], bool]) -> Kept | None:
        """Check the body and put it in its place; None, and nothing placed, once may_place says no."""

    async def sync(self) -> int:
        """Bring what has come to disk for good; how many bytes that is."""

    async def keep(self) -> int:
        """Leave what has come for a later attempt; how many bytes, 0 where nothing is left."""


class Receiver(Protocol):
    """Where the bodies of attempts go."""

    keeps_heads: bool
    """Whether an answer without a body, to a HEAD, is kept too."""

    def refusal(self, fetch: Fetch) -> str | None:
        """What the fetch asks for that this sink does not do; None if there is no such thing."""

    def receive(
        self,
        entry: Entry,
        token: int,
        expected: Expected,
        care: Care | None = None,
        taken: Taken | None = None,
        came: Came | None = None,
    ) -> Coming:
        """A place for the body of a fetch; taken: the half of it that is there."""
