"""A worker process with metrics, scraped as Prometheus does."""

import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from fetchfleet import Fleet
from tests.support.named_workers import named_workers
from tests.support.workers import fetchfleet
from tools.origin import behaviours as o
from tools.origin.server import Origin

HOST = "127.0.0.158"


async def test_the_metrics_of_a_worker_equal_the_results(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """A second worker with the same address exits with 2 and names it."""
    with socket.create_server((HOST, 0)) as free:
        address = f"{HOST}:{free.getsockname()[1]}"
    settings = {"FETCHFLEET_METRICS": address, "FETCHFLEET_METRICS_HOSTS": "1"}
    async with Origin.serving(
        HOST, o.by_path({"/missing": o.status(404), "/shaky": o.fail_times(1, 500)}, o.ok(b"12345"))
    ) as origin:
        with named_workers(redis_url, tmp_path, **settings) as workers:
            await workers.start_all("one")
            paths = ["/missing", "/shaky", *(f"/{number}" for number in range(30))]
            batch = await fleet.submit([origin.url(path) for path in paths])
            results = [result async for result in batch.results()]
            async with httpx.AsyncClient() as client:
                text = (await client.get(f"http://{address}/metrics")).text
            refused = fetchfleet(
                "worker", "--redis", redis_url, "--metrics", address, "--out", tmp_path / "b"
            )
            assert await workers.members["one"].terminated() == 0
            lines = workers.events("fetch.finished")

    found = {
        (sample.name.removeprefix("fetchfleet_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    finished = Counter({key[1:]: value for key, value in found.items() if key[0] == "fetches_finished_total"})
    assert finished == Counter((result.outcome, result.reason or "") for result in results)
    assert found["fetch_retries_total", "http_status"] == 1
    assert found["log_events_total", "fetch.finished"] == len(lines) == len(results)
    for name, field in (
        ("fetch_duration", "total_ms"),
        ("fetch_queue", "queue_ms"),
        ("fetch_first_byte", "ttfb_ms"),
    ):
        assert found[f"{name}_seconds_count",] == len(results)
        assert abs(found[f"{name}_seconds_sum",] - sum(line[field] for line in lines) / 1000) < 0.001
    assert found["fetch_connect_seconds_count",] == sum(bool(line["connect_ms"]) for line in lines)
    assert (
        found["body_size_bytes_sum",]
        == found["received_bytes_total",]
        == sum(result.bytes or 0 for result in results if result.outcome == "stored")
    )
    assert found["lane_finished_total", HOST] == len(results)
    assert found["connections_opened_total",] == origin.connections_opened
    assert (found["ready",], found["disk_refuses",]) == (1, 0)
    assert (
        refused.returncode,
        f"port {address.rpartition(':')[2]}: Address already in use" in refused.stderr,
    ) == (2, True)


def test_arqs_command_with_a_port_in_use_exits_with_2(redis_url: str, tmp_path: Path) -> None:
    """The error is the same, without a traceback."""
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        environment = {"FETCHFLEET_METRICS": f"{HOST}:{port}", "FETCHFLEET_REDIS_URL": redis_url}
        command = [sys.executable, "-m", "arq", "fetchfleet.worker.main.WorkerSettings"]
        ended = subprocess.run(
            command,
            env={**os.environ, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert ended.returncode == 2
    assert f"--metrics: cannot listen on {HOST}, port {port}: Address already in use" in ended.stderr
    assert "Traceback" not in ended.stderr
