"""The history of a run as append-only JSON lines: submissions, requests at the hosts, results, faults."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from tools.chaos.schedule import Kind

L = TypeVar("L", bound=msgspec.Struct)


class Attempted(msgspec.Struct, frozen=True, tag=True):
    """A producer is about to submit these URLs."""

    urls: list[str]
    batch: str = ""
    """The batch ID that the producer chose, '' if none."""
    dests: dict[str, str] = {}
    """The `dest` of fetches that have one, by URL."""


class Acknowledged(msgspec.Struct, frozen=True, tag=True):
    """Redis acknowledged the URLs."""

    ids: list[str]
    """The ID of each fetch, '' for a message of the inbox."""
    urls: list[str]


class Cancelling(msgspec.Struct, frozen=True, tag=True):
    """A producer cancels a batch; the call may fail."""

    batch: str


class Followed(msgspec.Struct, frozen=True):
    """The results of a batch that a producer read while faults were injected."""

    batch: str
    ids: list[str]
    ended: bool
    """True if the producer read the batch to its end."""


class ObservedRequest(msgspec.Struct, frozen=True):
    """One request at a host. Times are from time.monotonic."""

    host: str
    target: str
    by: str
    """The name of the worker."""
    arrived_s: float
    finished_s: float | None
    """None if the response was still being sent."""
    act: str
    """The behaviour of the host, a value of hosts.Act."""
    status: int | None
    aborted: bool


class BackoffWindow(msgspec.Struct, frozen=True):
    """A window in which a host asked the client to back off."""

    host: str
    from_s: float
    until_s: float


class FetchEnd(msgspec.Struct, frozen=True):
    """A result from the stream of its batch."""

    id: str
    url: str
    outcome: str
    reason: str | None
    status: int | None
    path: str | None
    sha256: str | None
    attempts: int
    at_ms: int
    """Unix time of the stream record, by Redis's clock."""


class StoredFile(msgspec.Struct, frozen=True):
    """A file at a final name."""

    path: str
    sha256: str


class Fault(msgspec.Struct, frozen=True):
    """An injected fault. Times are from time.monotonic."""

    kind: Kind
    worker: str
    """The name of the affected worker, '' for all of them or Redis."""
    from_s: float
    until_s: float


class WorkerDeath(msgspec.Struct, frozen=True):
    """A worker that exited unasked, or with an error on SIGTERM."""

    worker: str
    description: str
    """The cause, and the end of the log."""


class Leftovers(msgspec.Struct, frozen=True):
    """The keys that the drained fleet left in Redis."""

    lines: list[str]
    """A sentence for each."""
    unix_s: float
    """Unix time minus time.monotonic."""


Producer = Attempted | Acknowledged | Cancelling


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The complete history of a run, which is the input of the checker."""

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
