"""The tables of a fleet on a terminal."""

import io

import msgspec
from msgspec.structs import replace
from rich.console import Console

from fetchfleet.jobs.client.batch import Counts
from fetchfleet.jobs.client.batch_list import BatchSummary
from fetchfleet.worker.cli.render import batches_of, status_of, workers_of
from fetchfleet.worker.inspect.doors import Door
from fetchfleet.worker.inspect.fleet_status import FleetStatus, WorkerStatus, worker_status
from fetchfleet.worker.inspect.overview import Overview
from fetchfleet.worker.inspect.registration import registration_of
from fetchfleet.worker.inspect.snapshot import LaneReport, WorkerReport
from fetchfleet.worker.settings import Settings

NOW_MS = 90 * 60 * 1000
_EMPTY: dict[str, object] = {"lanes": {}, "unread": {}, "finished": {}}
NOTHING = msgspec.convert({**dict.fromkeys(Overview.__struct_fields__, 0), **_EMPTY}, Overview)


def status(name: str, engine: str = "httpx") -> WorkerStatus:
    """Return a worker with large figures."""
    registration = registration_of(Settings(worker_id=name, engine=engine), 0)
    return worker_status(
        registration.instance,
        WorkerReport(
            registration=registration,
            lanes={f"{i}.example": LaneReport(in_flight=90) for i in range(999)},
            finished_per_s=2345.6,
            received_bytes_per_s=987_654_321.0,
        ),
        NOW_MS,
    )


def printed(*workers: WorkerStatus) -> list[str]:
    """Return the lines of the table on a terminal of 80 columns."""
    screen = io.StringIO()
    Console(file=screen, width=80).print(workers_of(workers))
    return [line.rstrip() for line in screen.getvalue().splitlines()]


def test_the_table_of_workers_fits_80_columns_without_loss() -> None:
    """A long name is folded. Numbers are complete."""
    name = "ip-10-250-130-117.eu-central-1.compute.internal-4194304"
    lines = printed(status(name, engine="direct"))

    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    assert name == "".join(line.split(" ")[0] for line in lines[2:])
    assert all(fact in lines[2] for fact in ("90 min", "direct", "999", "89910", "2345.6", "987.7 MB"))


def test_workers_that_share_a_name_are_shown_by_their_instances() -> None:
    """The lines can be distinguished. A unique name is shown as it is."""
    one, two, other = status("double"), status("double"), status("single")
    text = "\n".join(printed(one, two, other))

    assert one.instance in text
    assert two.instance in text
    assert other.instance not in text
    assert "single" in text


def test_workers_of_an_older_version_do_not_differ() -> None:
    """They publish no digest. Two digests differ."""
    old = worker_status("old", WorkerReport(), NOW_MS)
    one, two = status("one"), replace(status("two"), policy="0123456789abcdef")

    assert "differ" not in status_text(old, one)
    assert "workers differ in their policy files: 01234567 (1), defaults (1)" in status_text(old, one, two)


def test_the_backlog_has_an_estimate_of_its_time() -> None:
    """The estimate uses the present rate of the workers, and is left out without a rate."""
    assert "4,691 fetches to do (about 2 s) in 0 lanes" in status_text(status("one"), backlog=4691)
    assert "4,691 fetches to do in 0 lanes" in status_text(backlog=4691)


def test_the_table_of_batches_fits_80_columns() -> None:
    """It does so with counts below a million."""
    counts = Counts(total=999_999, stored=700_000, failed=100_000, cancelled=100_000, bytes=10**15 - 1)
    batch = BatchSummary(id="0123456789abcdef", created_ms=0, cancel_ms=1, counts=counts)
    screen = io.StringIO()
    Console(file=screen, width=80).print(batches_of([batch], NOW_MS))
    facts = ["0123456789abcdef", "90 min", "cancelling", "900,000", "999,999", "100,000", "1000.0 TB"]

    assert max(len(line.rstrip()) for line in screen.getvalue().splitlines()) <= 80
    assert [fact for fact in facts if fact not in screen.getvalue()] == []


def status_text(*workers: WorkerStatus, backlog: int = 0) -> str:
    """Return the text of a fleet with these workers."""
    screen = io.StringIO()
    fleet = FleetStatus(
        workers=[*workers],
        vanished=[],
        lanes=[],
        lanes_in_all=0,
        backlog=backlog,
        backlog_exact=True,
        oldest_s=None,
        in_lanes=0,
        inbox=0,
        inbox_door=Door(),
        arq_door=Door(),
        dead=0,
        overview=NOTHING,
    )
    Console(file=screen, width=80).print(status_of(fleet))
    return screen.getvalue()


def test_a_worker_of_an_older_version_is_shown_with_placeholders() -> None:
    """Newer workers are in the same table."""
    old = worker_status("worker-1", WorkerReport(finished_per_s=1.0), NOW_MS)

    assert ("worker-1", "worker-1", None, None) == (old.id, old.instance, old.version, old.age_s)
    assert ["worker-1", "?", "?", "?"] == printed(old)[2].split()[:4]
