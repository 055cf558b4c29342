"""The history of a run as append-only JSON lines: submissions, requests at the hosts, results, faults."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from tools.chaos.schedule import Kind

L = TypeVar("L", bound=msgspec.Struct)


class Attempted(msgspec.Struct, frozen=True, tag=True):
    """A producer submits these URLs. batch: its own batch id, '' if none; dests: by URL."""

    urls: list[str]
    batch: str = ""
    dests: dict[str, str] = {}


class Acknowledged(msgspec.Struct, frozen=True, tag=True):
    """Redis acknowledged the URLs. ids: of their fetches, '' for the inbox, which returns none."""

    ids: list[str]
    urls: list[str]


class Cancelling(msgspec.Struct, frozen=True, tag=True):
    """A producer cancels a batch; the call may fail."""

    batch: str


class Followed(msgspec.Struct, frozen=True):
    """The results of a batch as a producer read them while the faults came. ended: it came to the end."""

    batch: str
    ids: list[str]
    ended: bool


class ObservedRequest(msgspec.Struct, frozen=True):
    """One request at a host; times of time.monotonic. by: the worker's name.

    act: the host's behaviour (hosts.Act). finished_s: None while the response is being sent.
    """

    host: str
    target: str
    by: str
    arrived_s: float
    finished_s: float | None
    act: str
    status: int | None
    aborted: bool


class BackoffWindow(msgspec.Struct, frozen=True):
    """A window in which a host asked the client to back off."""

    host: str
    from_s: float
    until_s: float


class FetchEnd(msgspec.Struct, frozen=True):
    """A result from its batch's stream; at_ms by Redis's clock."""

    id: str
    url: str
    outcome: str
    reason: str | None
    status: int | None
    path: str | None
    sha256: str | None
    attempts: int
    at_ms: int


class StoredFile(msgspec.Struct, frozen=True):
    """A file at a final name."""

    path: str
    sha256: str


class Fault(msgspec.Struct, frozen=True):
    """An injected fault; times of time.monotonic. by: the affected worker, '' for all."""

    kind: Kind
    by: str
    from_s: float
    until_s: float


class WorkerDeath(msgspec.Struct, frozen=True):
    """A worker that ended by itself, or with an error on SIGTERM."""

    by: str
    how: str


class Leftovers(msgspec.Struct, frozen=True):
    """Everything left in Redis after the run, a line each. unix_s: Unix time minus time.monotonic."""

    lines: list[str]
    unix_s: float


Producer = Attempted | Acknowledged | Cancelling


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The whole history of a run, the input of the checker."""

    producer: list[Producer]
    requests: list[ObservedRequest]
    backoffs: list[BackoffWindow] = []
    ended: list[FetchEnd]
    followed: list[Followed] = []
    found: list[StoredFile]
    faults: list[Fault] = []
    died: list[WorkerDeath] = []
    remains: Leftovers = Leftovers([], 0.0)


class History:
    """The files of a history in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, lines: Iterable[msgspec.Struct]) -> None:
        """Append lines to one file of the history."""
        with (self.folder / f"{name}.jsonl").open("ab") as file:
            file.writelines(msgspec.json.encode(line) + b"\n" for line in lines)

    def read(self) -> Record:
        """Read all files."""
        remains = self._lines("remains", Leftovers)
        return Record(
            producer=self._lines("producer", Producer),  # type: ignore[arg-type]
            requests=self._lines("requests", ObservedRequest),
            backoffs=self._lines("backoffs", BackoffWindow),
            ended=self._lines("ended", FetchEnd),
            followed=self._lines("followed", Followed),
            found=self._lines("found", StoredFile),
            faults=self._lines("faults", Fault),
            died=self._lines("died", WorkerDeath),
            remains=remains[-1] if remains else Leftovers([], 0.0),
        )

    def _lines(self, name: str, kind: type[L]) -> list[L]:
        path = self.folder / f"{name}.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        decode = msgspec.json.Decoder(kind).decode
        return [decode(line) for line in lines]
