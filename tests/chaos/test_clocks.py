"""Wall clocks of workers and producers that are five minutes off."""

import asyncio
from pathlib import Path

from fetchfleet import Batch, Fleet, Outcome
from tests.support.named_workers import named_workers
from tests.support.waiting import wait_until
from tests.support.workers import QUICK_POLICY, fetchfleet
from tools.origin.behaviours import OK, latency, retry_after, sequence
from tools.origin.judge import closer_than
from tools.origin.server import Origin, requests_inside

SHIM = str(Path(__file__).parents[1] / "support" / "skewed")
OFF_S = 300.0
RETRY_AFTER_S = 2.0
ON_THE_WIRE_S = 0.4
PROMPT_S = 15.0
"""A fetch that a wrong clock delays would end minutes later."""

RATE_LIMITED, COOLING = "127.0.0.211", "127.0.0.212"
RATE_PER_S = 10
POLICY = f"{QUICK_POLICY}concurrency = 4\n[host.'{RATE_LIMITED}']\nrate_per_s = {RATE_PER_S}\n"


def skewed(by_s: float) -> dict[str, str]:
    """Return the environment of a process whose wall clock is off by this much."""
    return {"PYTHONPATH": SHIM, "FETCHFLEET_TEST_SKEW_S": str(by_s)}


async def test_i30_skewed_clocks_change_neither_rate_limit_nor_cool_down(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """One worker is behind, another worker and a producer are ahead, and all fetches end soon."""
    async with (
        Origin.serving(RATE_LIMITED, latency(0.01, OK)) as rate_limited,
        Origin.serving(COOLING, sequence(OK, retry_after(RETRY_AFTER_S), OK)) as cooling,
    ):

        def urls(folder: str, count: int) -> list[str]:
            return [origin.url(f"/{folder}/{n}") for n in range(count) for origin in (rate_limited, cooling)]

        with named_workers(redis_url, tmp_path / "fleet", POLICY) as workers:
            await workers.start_all("behind", **skewed(-OFF_S))
            submit = await asyncio.to_thread(
                fetchfleet,
                "submit",
                "-",
                "--redis",
                redis_url,
                stdin="\n".join(urls("a", 5)),
                **skewed(OFF_S),
            )
            first = fleet.batch(submit.stdout.strip())
            await wait_until(lambda: _ended(first), "the end of the first batch", PROMPT_S)
            await workers.start_all("ahead", **skewed(OFF_S))
            second = await fleet.submit(urls("b", 20))
            await wait_until(lambda: _ended(second), "the end of the second batch", PROMPT_S)
            results = [result for batch in (first, second) async for result in batch.results()]

    assert 50 == len({result.id for result in results})
    assert {Outcome.STORED} == {result.outcome for result in results}
    assert [] == closer_than(rate_limited.requests, 1 / RATE_PER_S, burst=1, slack_s=ON_THE_WIRE_S)
    assert [] == requests_inside(cooling.windows, cooling.requests, ON_THE_WIRE_S)
    assert max(rate_limited.high_water, cooling.high_water) <= 4


async def _ended(batch: Batch) -> bool:
    return (await batch.counts()).ended
