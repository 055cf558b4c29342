"""The problems of a fleet, from its figures: the list at the top of the front page."""

from collections import Counter
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple
from urllib.parse import quote

from fetchfleet.worker.console.pages.formats import age
from fetchfleet.worker.inspect.fleet_status import WorkerStatus
from fetchfleet.worker.inspect.overview import Overview
from fetchfleet.worker.inspect.snapshot import lack_text
from fetchfleet.worker.inspect.views.hosts import HostRow

OLD_S = 900
"""The age of the oldest waiting fetch from which it is named."""
UNREAD = 1000
"""The unread results of a consumer group from which it is named."""
UNREAD_BAD = 50_000
"""The unread results from which some may soon be dropped: the stream keeps 100,000 by default."""
NAMES_SHOWN = 3


class Severity(StrEnum):
    """The severity of a problem, the worst first."""

    BAD = "bad"
    """Fetches wait or fail until an operator acts."""
    WARN = "warn"
    """It may pass; an operator should look."""
    NOTE = "note"
    """An operator set it so."""


class FleetProblem(NamedTuple):
    """A problem, with a link to the page that helps."""

    key: str
    """Identifies the problem while its figures change."""
    severity: Severity
    title: str
    detail: str
    href: str
    action: str
    """The text of the link."""


class FleetFigures(NamedTuple):
    """The figures of a fleet."""

    overview: Overview
    workers: Sequence[WorkerStatus]
    hosts: Sequence[HostRow]


def fleet_problems(picture: FleetFigures) -> list[FleetProblem]:
    """Return the problems, the worst first. Pure."""
    found = [*_of_workers(picture), *_of_hosts(picture.hosts), *_of_backlog(picture), *_of_results(picture)]
    order = list(Severity)
    return sorted(found, key=lambda problem: order.index(problem.severity))


def _of_workers(picture: FleetFigures) -> Iterator[FleetProblem]:
    workers, to_do = picture.workers, to_do_text(picture.overview)
    if not workers:
        severity = Severity.BAD if to_do else Severity.WARN
        detail = f"{to_do or 'Nothing waits'}. Start a worker with: fetchfleet worker"
        yield FleetProblem("no worker", severity, "No worker is running", detail, "/hosts", "Hosts")
        return
    lacking = [worker for worker in workers if worker.lacking and not worker.draining]
    drained = [worker for worker in workers if worker.draining]
    if lacking:
        is_all = len(lacking) + len(drained) == len(workers)
        title = (
            "No worker can store bodies" if is_all else f"{_many(len(lacking), 'worker')} cannot store bodies"
        )
        lacks = (f"{worker.id} lacks {lack_text(worker.lacking, worker.lacking_error)}" for worker in lacking)
        yield FleetProblem(
            "disk", Severity.BAD, title, _some(list(lacks), "; "), "/events?event=disk.*", "Events"
        )
    if drained and len(drained) == len(workers):
        detail = f"{to_do or 'Nothing waits'}. Undrain one with: fetchfleet undrain {drained[0].id}"
        yield FleetProblem("drained", Severity.BAD, "Every worker is drained", detail, "/hosts", "Hosts")
    elif drained:
        title = f"{_many(len(drained), 'worker is', 'workers are')} drained"
        yield FleetProblem(
            "drained", Severity.NOTE, title, _some([of.id for of in drained]), "/#workers", "Workers"
        )
    for setting in ("policy", "sink"):
        values = Counter(value for worker in workers if (value := getattr(worker, setting)))
        if len(values) > 1:
            using = [f"{value[:8]} on {_many(number, 'worker')}" for value, number in values.most_common()]
            title = f"Workers differ in their {setting}{' file' if setting == 'policy' else ''}"
            yield FleetProblem(
                f"differ {setting}", Severity.WARN, title, _some(using), "/events?event=workers.*", "Events"
            )


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
        waiting = _many(sum(host.waiting for host in found), "fetch waits", "fetches wait")
        title = (
            f"{found[0].host} {trouble.one}" if len(found) == 1 else f"{len(found):,} hosts {trouble.many}"
        )
        detail = waiting if len(found) == 1 else f"{_some([host.host for host in found])}; {waiting}"
        href = (
            f"/hosts/{quote(found[0].host, safe='')}" if len(found) == 1 else f"/hosts?state={trouble.state}"
        )
        action = "Host" if len(found) == 1 else "Hosts"
        yield FleetProblem(f"host {trouble.state}", trouble.severity, title, detail, href, action)


def _of_backlog(picture: FleetFigures) -> Iterator[FleetProblem]:
    overview = picture.overview
    if overview.oldest_s is not None and overview.oldest_s >= OLD_S:
        title = f"The oldest fetch has waited {age(overview.oldest_s)}"
        runnable = f"{_many(overview.runnable, 'host')} could start one now" if overview.runnable else ""
        detail = "; ".join(text for text in (to_do_text(overview), runnable) if text)
        yield FleetProblem("old", Severity.WARN, title, detail, "/hosts?sort=waiting", "Hosts")


def _of_results(picture: FleetFigures) -> Iterator[FleetProblem]:
    overview = picture.overview
    poison = overview.finished.get("failed", {}).get("poison", 0)
    if poison:
        title = f"{_many(poison, 'fetch has', 'fetches have')} killed workers"
        detail = "Workers died while they ran them; they are dead letters with the reason poison"
        yield FleetProblem("poison", Severity.BAD, title, detail, "/dead?reason=poison", "Dead letters")
    for group, unread in sorted(overview.unread.items()):
        if unread >= UNREAD:
            severity = Severity.BAD if unread >= UNREAD_BAD else Severity.WARN
            title = f"{_many(unread, 'result is', 'results are')} unread by {group}"
            detail = "This consumer group reads too slowly; Redis drops the oldest of all results"
            yield FleetProblem(f"unread {group}", severity, title, detail, "/batches", "Batches")


def to_do_text(overview: Overview) -> str:
    """Return in words the number of fetches and messages that wait; empty if nothing waits."""
    parts = []
    if overview.backlog:
        parts.append(_many(overview.backlog, "fetch is to do", "fetches are to do"))
    if overview.inbox:
        parts.append(_many(overview.inbox, "inbox message waits", "inbox messages wait"))
    if overview.arq:
        parts.append(_many(overview.arq, "arq job waits", "arq jobs wait"))
    return ", ".join(parts)


def _many(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _some(names: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return separator.join(names[:NAMES_SHOWN]) + more
