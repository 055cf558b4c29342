"""A worker's garbage collection."""

import gc
from collections.abc import Iterator

import pytest

from fetchfleet.worker.util import gc_freeze


@pytest.fixture(autouse=True)
def _restored_collector() -> Iterator[None]:
    """Restore the collector of the test process."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_the_fetches_in_flight_cause_no_collection_after_the_start() -> None:
    """5,000 new objects are below the threshold."""
    gc.collect()
    gc_freeze.freeze()
    before = [of["collections"] for of in gc.get_stats()]

    held = [[number] for number in range(5_000)]

    assert [of["collections"] for of in gc.get_stats()] == before
    assert len(held) == 5_000


def test_garbage_is_still_collected() -> None:
    """50,000 new objects exceed the threshold."""
    gc_freeze.freeze()
    before = sum(of["collections"] for of in gc.get_stats())

    held = [[number] for number in range(50_000)]

    assert sum(of["collections"] for of in gc.get_stats()) > before
    assert len(held) == 50_000


def test_the_collector_runs_after_it_was_disabled_for_imports() -> None:
    """A command disables it before it imports its modules."""
    gc.disable()
    gc_freeze.freeze()

    assert gc.isenabled()
