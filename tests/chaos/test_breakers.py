"""A host fails and recovers while the workers that probe it are killed."""

import math
from functools import partial
from pathlib import Path

from fetchfleet import Fleet, Outcome
from tests.support.named_workers import named_workers, results_of, worker_of
from tests.support.waiting import wait_until
from tools.origin import judge
from tools.origin.behaviours import OK, stall_headers, status
from tools.origin.server import Origin

HOST = "127.0.0.221"
LEASE_S = 1.5
POLICY = """\
[default]
concurrency = 4
attempts = 100
retry_base_s = 0.05
retry_cap_s = 0.2
breaker_failures = 3
breaker_reset_s = 0.5
breaker_cap_s = 1
"""


async def test_i17_a_breaker_allows_one_probe_at_a_time_and_closes_after_the_recovery(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """The host stalls the probe, and the worker that waits for the response is killed. This happens twice."""
    async with Origin.serving(HOST, status(500)) as origin:
        with named_workers(redis_url, tmp_path / "fleet", POLICY, FETCHFLEET_LEASE_S=str(LEASE_S)) as workers:
            await workers.start_all("one", "two", "three")
            batch = await fleet.submit([origin.url(f"/{number}") for number in range(20)])
            await wait_until(lambda: workers.events("lane.breaker_open"), "the breaker to open", 20)
            await wait_until(lambda: not origin.in_progress, "the last request before the breaker opened", 20)
            opened_s = max(seen.finished_s for seen in origin.requests)
            origin.behaviour = stall_headers(60)
            for _ in range(2):
                seen = len(origin.requests)
                await wait_until(partial(_more_than, seen, origin), "a probe", 30)
                workers.members[worker_of(origin.requests[-1])].kill()
                await wait_until(lambda: not origin.in_progress, "the connection of the probe to close")
            origin.behaviour = OK
            results = await results_of(fleet, batch.id)
            closed = workers.events("lane.breaker_closed")
    probes = [seen for seen in origin.requests if seen.arrived_s > opened_s and seen.status != 200]
    recovered_s = min(seen.finished_s for seen in origin.requests if seen.status == 200)
    while_open = [seen for seen in origin.requests if opened_s < seen.arrived_s < recovered_s]

    assert {Outcome.STORED} == {result.outcome for result in results.values()}
    assert len(probes) >= 2
    assert 1 == judge.most_at_once(while_open)
    assert all(math.isfinite(seen.finished_s) for seen in probes)
    assert closed


def _more_than(count: int, origin: Origin) -> bool:
    return len(origin.requests) > count
