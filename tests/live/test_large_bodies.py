"""Memory of a worker process that has many large bodies in flight."""

import re
import shutil
from pathlib import Path

from jobs import Fleet, Outcome
from tests.support.static_server import serve_folder
from tests.support.waiting import wait_until
from tests.support.workers import workers

AT_ONCE = 8
BODY_BYTES = 64 << 20
MIB = 1 << 20


def most_memory_bytes(pid: int) -> int:
    """The largest resident set that the process ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


async def test_large_bodies_at_once_take_no_more_than_their_share_of_memory(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """100 MiB, and 2 for each that is in flight, while half a gigabyte goes through."""
    served = tmp_path / "served"
    served.mkdir()
    with (served / "large").open("wb") as file:
        file.truncate(BODY_BYTES)
    with (
        serve_folder(served, ["127.0.0.111"]) as server,
        workers(1, redis_url, tmp_path / "fleet") as running,
    ):
        await wait_until(running.started, "the worker to start")
        batch = await fleet.submit([f"{server.base_urls[0]}/large?{n}" for n in range(AT_ONCE)])
        results = [result async for result in batch.results()]
        most_bytes = most_memory_bytes(running.processes[0].pid)
        sizes = {(running.out / str(result.path)).stat().st_size for result in results}
        shutil.rmtree(running.out)

    assert [Outcome.STORED] * AT_ONCE == [result.outcome for result in results]
    assert {BODY_BYTES} == sizes
    assert most_bytes <= (100 + 2 * AT_ONCE) * MIB
