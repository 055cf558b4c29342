"""The front page: the state of the fleet, and what is wrong with it."""

from typing import NamedTuple

from starlette.requests import Request

from fetchfleet.worker.console.pages.formats import by_number, segment
from fetchfleet.worker.console.pages.history import Sample
from fetchfleet.worker.console.pages.live import Context, live_route
from fetchfleet.worker.console.services import ConsoleServices, services_of
from fetchfleet.worker.inspect.fleet_status import worker_status
from fetchfleet.worker.inspect.overview import overview_of
from fetchfleet.worker.inspect.problems import FleetFigures, FleetProblem, ProblemKind, fleet_problems
from fetchfleet.worker.inspect.snapshot import Snapshot
from fetchfleet.worker.inspect.views.batches import batches
from fetchfleet.worker.inspect.views.hosts import EVERY_HOST, host_rows, hosts_snapshot, selected_hosts

HOSTS_SHOWN, BATCHES_SHOWN, REASONS_SHOWN = 10, 5, 12


async def shared_snapshot(services: ConsoleServices) -> Snapshot:
    """Return the state of the fleet, which all viewers share."""
    return await services.pages.snapshot(lambda: services.read(hosts_snapshot))


async def read_fleet(request: Request) -> Context:
    """Read the front page."""
    services = services_of(request)
    fleet = await shared_snapshot(services)
    overview = await services.read(overview_of, fleet)
    workers = [worker_status(name, report, fleet.now_ms) for name, report in sorted(fleet.workers.items())]
    hosts = selected_hosts(host_rows(fleet), EVERY_HOST)
    history = services.pages.history
    history.add(
        Sample(fleet.now_ms, overview.finished_per_s, overview.received_bytes_per_s, overview.backlog)
    )
    failures = overview.finished.get("failed", {})
    return {
        "section": "fleet",
        "now_ms": fleet.now_ms,
        "overview": overview,
        "workers": workers,
        "hosts": hosts[:HOSTS_SHOWN],
        "batches": (await services.read(batches, limit=BATCHES_SHOWN)).batches,
        "failures": by_number(failures)[:REASONS_SHOWN],
        "failed": sum(failures.values()),
        "history": history.lines(fleet.now_ms),
        "problems": fleet_problems(FleetFigures(overview, workers, hosts, fleet.vanished)),
        "link_of": link_of,
    }


class Link(NamedTuple):
    """A link to a page."""

    href: str
    text: str


_LINKS = {
    ProblemKind.NO_WORKER: Link("/hosts", "Hosts"),
    ProblemKind.VANISHED: Link("/hosts?sort=worker", "Hosts"),
    ProblemKind.DISK: Link("/events?event=disk.*", "Events"),
    ProblemKind.ALL_DRAINED: Link("/hosts", "Hosts"),
    ProblemKind.DRAINED: Link("/#workers", "Workers"),
    ProblemKind.DIFFERENT: Link("/events?event=workers.*", "Events"),
    ProblemKind.OLD: Link("/hosts?sort=waiting", "Hosts"),
    ProblemKind.POISON: Link("/dead?reason=poison", "Dead letters"),
    ProblemKind.UNREAD: Link("/batches", "Batches"),
}


def link_of(problem: FleetProblem) -> Link:
    """Return the link to the page that helps."""
    if problem.kind is not ProblemKind.HOSTS:
        return _LINKS[problem.kind]
    if len(problem.hosts) == 1:
        return Link(f"/hosts/{segment(problem.hosts[0])}", "Host")
    return Link(f"/hosts?state={problem.about}", "Hosts")


ROUTES = [live_route("/", "fleet.html", read_fleet)]
