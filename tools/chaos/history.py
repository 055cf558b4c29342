"""What was asked for, what the hosts saw, what came of it: JSON lines, only ever added to."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from tools.chaos.schedule import Kind

L = TypeVar("L", bound=msgspec.Struct)


class Attempted(msgspec.Struct, frozen=True, tag=True):
    """A producer sends these URLs. batch: the id that it gives them, '' if none; dests: by URL."""

    urls: list[str]
    batch: str = ""
    dests: dict[str, str] = {}


class Acknowledged(msgspec.Struct, frozen=True, tag=True):
    """Redis has them: the id of each URL's fetch, '' where the door gives none."""

    ids: list[str]
    urls: list[str]


class Cancelling(msgspec.Struct, frozen=True, tag=True):
    """A producer asks for the end of a batch; perhaps it is heard."""

    batch: str


class Saw(msgspec.Struct, frozen=True):
    """One request as a host saw it; times of time.monotonic. by: the worker's name.

    act: what the host did with it; finished_s is None while the answer is under way.
    """

    host: str
    target: str
    by: str
    arrived_s: float
    finished_s: float | None
    act: str
    status: int | None
    aborted: bool


class Quiet(msgspec.Struct, frozen=True):
    """A host has asked for no request between these times."""

    host: str
    from_s: float
    until_s: float


class Ended(msgspec.Struct, frozen=True):
    """A terminal result, as its batch's stream has it; at_ms by Redis's clock."""

    id: str
    url: str
    outcome: str
    reason: str | None
    status: int | None
    path: str | None
    sha256: str | None
    attempts: int
    at_ms: int


class Found(msgspec.Struct, frozen=True):
    """A file at a final name."""

    path: str
    sha256: str


class Fault(msgspec.Struct, frozen=True):
    """A fault as it happened; times of time.monotonic. by: the worker that it met, '' if it met all."""

    kind: Kind
    by: str
    from_s: float
    until_s: float


class Died(msgspec.Struct, frozen=True):
    """A worker that ended although nobody asked it to, or not as it should."""

    by: str
    how: str


class Remains(msgspec.Struct, frozen=True):
    """What was left in Redis after the end, a line each. unix_s: what to add to time.monotonic."""

    lines: list[str]
    unix_s: float


Producer = Attempted | Acknowledged | Cancelling


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a verdict is made of."""

    producer: list[Producer]
    saw: list[Saw]
    quiet: list[Quiet] = []
    ended: list[Ended]
    found: list[Found]
    faults: list[Fault] = []
    died: list[Died] = []
    remains: Remains = Remains([], 0.0)


class History:
    """The history in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, lines: Iterable[msgspec.Struct]) -> None:
        """Append lines to one file of the history."""
        with (self.folder / f"{name}.jsonl").open("ab") as file:
            file.writelines(msgspec.json.encode(line) + b"\n" for line in lines)

    def read(self) -> Record:
        """What all of them hold."""
        remains = self._lines("remains", Remains)
        return Record(
            producer=self._lines("producer", Producer),  # type: ignore[arg-type]
            saw=self._lines("saw", Saw),
            quiet=self._lines("quiet", Quiet),
            ended=self._lines("ended", Ended),
            found=self._lines("found", Found),
            faults=self._lines("faults", Fault),
            died=self._lines("died", Died),
            remains=remains[-1] if remains else Remains([], 0.0),
        )

    def _lines(self, name: str, kind: type[L]) -> list[L]:
        path = self.folder / f"{name}.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        decode = msgspec.json.Decoder(kind).decode
        return [decode(line) for line in lines]
