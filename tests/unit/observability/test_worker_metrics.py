"""The metrics of a worker: their names, the page that describes them, and their values."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from fetchfleet.jobs.contract.result import Outcome, Reason
from fetchfleet.worker.observability import totals
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.observability.percentiles import Histogram
from fetchfleet.worker.observability.totals import FetchTotals
from fetchfleet.worker.observability.worker_figures import LaneFigures, WorkerFigures
from fetchfleet.worker.observability.worker_metrics import families_of, registry_of
from fetchfleet.worker.runtime.stats import LAGS_S

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def figures(counted: FetchTotals, lag_s: Histogram | None = None) -> WorkerFigures:
    """Return the figures of a worker with these counters."""
    return WorkerFigures(
        about={"worker": 'o"ne\n', "version": "1"},
        totals=counted,
        lag_s=lag_s or Histogram((0.001, 0.5)),
        received_bytes=3,
        opened=5,
        reused=6,
        closed=4,
        lanes=2,
        in_flight=7,
        settling=8,
        unverified_tls=1,
        log_events={"fetch.finished": 9},
        log_lines_dropped=10,
        free_bytes=11,
        disk_refuses=True,
        heartbeat_age_s=0.5,
        ready=False,
        busiest=[LaneFigures("a.example", 1, 2)],
    )


def samples(of: WorkerFigures) -> list[Sample]:
    """Return the samples as Prometheus reads them."""
    text = generate_latest(registry_of(lambda: of)).decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def values(of: WorkerFigures) -> dict[tuple[str, ...], float]:
    """Return the values by name, without its prefix, and label values."""
    return {
        (sample.name.removeprefix("fetchfleet_"), *sample.labels.values()): sample.value
        for sample in samples(of)
    }


def test_the_page_names_every_metric_of_a_worker_and_no_other() -> None:
    """With its type. The metrics of the process come from prometheus-client."""
    section = PAGE.read_text().partition("\n## Worker\n")[2].partition("\n### ")[0]
    documented = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.MULTILINE))
    suffixes = {"counter": "_total", "info": "_info"}
    exported = {
        family.name + suffixes.get(family.type, ""): family.type.replace("info", "gauge")
        for family in families_of(figures(FetchTotals()))
    }
    of_process = {
        sample.name for sample in samples(figures(FetchTotals())) if sample.name.startswith("process_")
    }

    assert documented == exported
    assert of_process
    assert [] == [name for name in of_process if f"`{name}`" not in PAGE.read_text()]


def test_the_page_has_the_buckets_of_every_histogram() -> None:
    """In base units."""
    section = PAGE.read_text().partition("\n### Histograms\n")[2].partition("\n## ")[0]
    documented = {}
    for names, bounds in re.findall(r"^\| (`fetchfleet.*`) \| (.*) \|$", section, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            documented[name] = [float(bound) for bound in bounds.split(", ")]
    exported: dict[str, list[float]] = {}
    for sample in samples(figures(FetchTotals(), Histogram(LAGS_S))):
        if sample.name.endswith("_bucket") and sample.labels["le"] != "+Inf":
            exported.setdefault(sample.name.removesuffix("_bucket"), []).append(float(sample.labels["le"]))

    assert documented == exported


def test_the_values_are_those_of_the_reading() -> None:
    """A reason that is missing is an empty label. Labels are escaped."""
    counted = FetchTotals()
    counted.finished.update({(Outcome.STORED, None): 3, (Outcome.FAILED, Reason.TLS): 2})
    counted.retries.update({None: 1, Reason.CONNECT: 4})
    counted.throttles, counted.interruptions = 5, 6
    found = values(figures(counted))

    [about] = [sample for sample in samples(figures(counted)) if sample.name == "fetchfleet_worker_info"]
    assert (about.value, about.labels) == (1, {"worker": 'o"ne\n', "version": "1"})
    assert (
        found["fetches_finished_total", "stored", ""],
        found["fetches_finished_total", "failed", "tls"],
    ) == (3, 2)
    assert (found["fetch_retries_total", ""], found["fetch_retries_total", "connect"]) == (1, 4)
    assert (found["fetch_throttles_total",], found["fetch_interruptions_total",]) == (5, 6)
    assert found["log_events_total", "fetch.finished"] == 9
    names = (
        *("received_bytes_total", "connections_opened_total", "connections_reused_total"),
        *(
            "connections_closed_total",
            "connections_open",
            "lanes_held",
            "fetches_in_flight",
            "fetches_settling",
        ),
        *("lanes_unverified_tls", "log_lines_dropped_total", "disk_free_bytes", "disk_refuses"),
        *("heartbeat_age_seconds", "ready"),
    )
    assert [found[name,] for name in names] == [3, 5, 6, 4, 1, 2, 7, 8, 1, 10, 11, 1, 0.5, 0]
    assert (found["lane_in_flight", "a.example"], found["lane_finished_total", "a.example"]) == (1, 2)


def test_counters_of_failures_and_log_lines_start_at_0() -> None:
    """Prometheus sees the first failure as an increase, not as the start of a series."""
    found = values(figures(FetchTotals()))

    assert {("failed", reason.value): 0.0 for reason in Reason} == {
        key[1:]: value for key, value in found.items() if key[0] == "fetches_finished_total"
    }
    assert {event.value for event in Event} == {key[1] for key in found if key[0] == "log_events_total"}
    assert 0 == found["log_events_total", "worker.bug"]


@given(st.lists(st.floats(0, 2e9, allow_nan=False)))
def test_a_histogram_counts_each_measurement_once(measured: list[float]) -> None:
    """Each bucket has the measurements up to its bound."""
    histogram = Histogram((5, 1e3, 1e6))
    for value in measured:
        histogram.add(value)

    *bounded, (last, total) = histogram.cumulative()
    assert bounded == [(bound, sum(value <= bound for value in measured)) for bound in (5, 1e3, 1e6)]
    assert (last, total) == (float("inf"), len(measured))
    assert histogram.sum == pytest.approx(sum(measured))


def test_only_the_busiest_lanes_have_metrics_and_few_are_counted() -> None:
    """A lane with fetches in flight may not have finished any yet."""
    counted = FetchTotals(by_lane=True)
    assert counted.by_lane is not None
    counted.by_lane.update({"a": 5, "b": 1, "c": 3})
    assert counted.busiest(2, {"d": 4}) == ["a", "d"]

    counted.by_lane.update({f"{number}.example": 1 for number in range(totals.MAX_LANES)})
    counted.bound_lanes()
    assert len(counted.by_lane) <= totals.MAX_LANES
    assert counted.by_lane["a"] == 5
    assert FetchTotals().busiest(2, {}) == []
