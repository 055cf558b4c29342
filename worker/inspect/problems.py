"""The problems of a fleet, from its figures, for the console and the terminal."""

from collections import Counter
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from fetchfleet.worker.inspect.fleet_status import WorkerStatus
from fetchfleet.worker.inspect.overview import Overview
from fetchfleet.worker.inspect.snapshot import lack_text
from fetchfleet.worker.inspect.views.hosts import HostRow
from fetchfleet.worker.inspect.workers.silence import VanishedWorker
from fetchfleet.worker.util.quantities import age, count, some

OLD_S = 900
"""The age of the oldest waiting fetch from which it is named."""
UNREAD = 1000
"""The unread results of a consumer group from which it is named."""
UNREAD_BAD = 50_000
"""The unread results from which some may soon be dropped: the stream keeps 100,000 by default."""


class Severity(StrEnum):
    """The severity of a problem, the worst first."""

    BAD = "bad"
    """Fetches wait or fail until an operator acts."""
    WARN = "warn"
    """It may pass; an operator should look."""
    NOTE = "note"
    """An operator set it so."""


class ProblemKind(StrEnum):
    """The kind of a problem."""

    NO_WORKER = "no worker"
    VANISHED = "vanished"
    DISK = "disk"
    ALL_DRAINED = "all drained"
    DRAINED = "drained"
    DIFFERENT = "different"
    HOSTS = "hosts"
    OLD = "old"
    POISON = "poison"
    UNREAD = "unread"


class FleetProblem(NamedTuple):
    """A problem. Its texts may have names from Redis, which are not safe on a terminal."""

    kind: ProblemKind
    severity: Severity
    title: str
    detail: str
    about: str = ""
    """The state of the hosts, the setting in which workers differ, or the consumer group."""
    hosts: tuple[str, ...] = ()
    """The hosts with the problem, if it is one of hosts."""

    @property
    def key(self) -> str:
        """Identifies the problem while its figures change."""
        return f"{self.kind} {self.about}".strip()


class FleetFigures(NamedTuple):
    """The figures of a fleet."""

    overview: Overview
    workers: Sequence[WorkerStatus]
    hosts: Sequence[HostRow]
    vanished: Sequence[VanishedWorker] = ()


def fleet_problems(fleet: FleetFigures) -> list[FleetProblem]:
    """Return the problems, the worst first. Pure."""
    found = [
        *vanished_problems(fleet.vanished),
        *_of_workers(fleet),
        *_of_hosts(fleet.hosts),
        *_of_backlog(fleet),
        *_of_results(fleet),
    ]
    order = list(Severity)
    return sorted(found, key=lambda problem: order.index(problem.severity))


def vanished_problems(vanished: Sequence[VanishedWorker]) -> Iterator[FleetProblem]:
    """Yield the problems of workers that send no heartbeat. Pure."""
    holding = [worker for worker in vanished if worker.hosts]
    others = [worker for worker in vanished if not worker.hosts]
    for workers, severity in ((holding, Severity.BAD), (others, Severity.WARN)):
        if len(workers) == 1:
            title, detail = workers[0].title, workers[0].detail
        else:
            title = f"{count(len(workers), 'worker')} vanished"
            detail = some([f"{worker.title}. {worker.detail}" for worker in workers], "; ")
        if workers:
            yield FleetProblem(ProblemKind.VANISHED, severity, title, detail, severity)


def _of_workers(fleet: FleetFigures) -> Iterator[FleetProblem]:
    workers, to_do = fleet.workers, to_do_text(fleet.overview)
    if not workers:
        severity = Severity.BAD if to_do else Severity.WARN
        detail = f"{to_do or 'Nothing waits'}. Start a worker with: fetchfleet worker"
        yield FleetProblem(ProblemKind.NO_WORKER, severity, "No worker is running", detail)
        return
    lacking = [worker for worker in workers if worker.lacking and not worker.draining]
    drained = [worker for worker in workers if worker.draining]
    if lacking:
        title = f"{count(len(lacking), 'worker')} cannot store bodies"
        if len(lacking) + len(drained) == len(workers):
            title = "No worker can store bodies"
        lacks = [f"{worker.id} lacks {lack_text(worker.lacking, worker.lacking_error)}" for worker in lacking]
        yield FleetProblem(ProblemKind.DISK, Severity.BAD, title, some(lacks, "; "))
    if drained and len(drained) == len(workers):
        detail = f"{to_do or 'Nothing waits'}. Undrain one with: fetchfleet undrain {drained[0].id}"
        yield FleetProblem(ProblemKind.ALL_DRAINED, Severity.BAD, "Every worker is drained", detail)
    elif drained:
        title = f"{count(len(drained), 'worker is', 'workers are')} drained"
        yield FleetProblem(ProblemKind.DRAINED, Severity.NOTE, title, some([of.id for of in drained]))
    for setting in ("policy", "sink"):
        values = Counter(value for worker in workers if (value := getattr(worker, setting)))
        if len(values) > 1:
            using = [f"{value[:8]} on {count(number, 'worker')}" for value, number in values.most_common()]
            title = f"Workers differ in their {setting}{' file' if setting == 'policy' else ''}"
            yield FleetProblem(ProblemKind.DIFFERENT, Severity.WARN, title, some(using), setting)


class _HostTrouble(NamedTuple):
    """A state of hosts that is a problem, in words for one host and for several."""

    state: str
    severity: Severity
    one: str
    many: str


_HOST_TROUBLES = (
    _HostTrouble("breaker", Severity.BAD, "fails: its circuit breaker is open", "fail: circuit breaker open"),
    _HostTrouble("cooling", Severity.WARN, "asked to back off", "asked to back off"),
    _HostTrouble("robots", Severity.WARN, "does not deliver robots.txt", "do not deliver robots.txt"),
    _HostTrouble("paused", Severity.NOTE, "is paused", "are paused"),
)


def _of_hosts(hosts: Sequence[HostRow]) -> Iterator[FleetProblem]:
    for trouble in _HOST_TROUBLES:
        found = [host for host in hosts if host.state == trouble.state]
        if not found:
            continue
        names = tuple(host.host for host in found)
        detail = count(sum(host.waiting for host in found), "fetch waits", "fetches wait")
        title = f"{names[0]} {trouble.one}"
        if len(names) > 1:
            title, detail = f"{len(names):,} hosts {trouble.many}", f"{some(names)}; {detail}"
        yield FleetProblem(ProblemKind.HOSTS, trouble.severity, title, detail, trouble.state, names)


def _of_backlog(fleet: FleetFigures) -> Iterator[FleetProblem]:
    overview = fleet.overview
    if overview.oldest_s is not None and overview.oldest_s >= OLD_S:
        title = f"The oldest fetch has waited {age(overview.oldest_s)}"
        runnable = f"{count(overview.runnable, 'host')} could start one now" if overview.runnable else ""
        detail = "; ".join(text for text in (to_do_text(overview), runnable) if text)
        yield FleetProblem(ProblemKind.OLD, Severity.WARN, title, detail)


def _of_results(fleet: FleetFigures) -> Iterator[FleetProblem]:
    overview = fleet.overview
    poison = overview.finished.get("failed", {}).get("poison", 0)
    if poison:
        title = f"{count(poison, 'fetch has', 'fetches have')} killed workers"
        detail = "Workers died while they ran them; they are dead letters with the reason poison"
        yield FleetProblem(ProblemKind.POISON, Severity.BAD, title, detail)
    for group, unread in sorted(overview.unread.items()):
        if unread >= UNREAD:
            severity = Severity.BAD if unread >= UNREAD_BAD else Severity.WARN
            title = f"{count(unread, 'result is', 'results are')} unread by {group}"
            detail = "This consumer group reads too slowly; Redis drops the oldest of all results"
            yield FleetProblem(ProblemKind.UNREAD, severity, title, detail, group)


def to_do_text(overview: Overview) -> str:
    """Return in words the number of fetches and messages that wait; empty if nothing waits. Pure."""
    parts = []
    if overview.backlog:
        parts.append(count(overview.backlog, "fetch is to do", "fetches are to do"))
    if overview.inbox:
        parts.append(count(overview.inbox, "inbox message waits", "inbox messages wait"))
    if overview.arq:
        parts.append(count(overview.arq, "arq job waits", "arq jobs wait"))
    return ", ".join(parts)
