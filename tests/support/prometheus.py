"""A real Prometheus with the rules of ops/monitoring/, in which a minute lasts a second."""

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from fetchfleet.worker.local.process import die_with_parent
from tests.support.monitoring import RULES
from tests.support.waiting import wait_until

SKIP_REASON = None if shutil.which("prometheus") else "prometheus is not installed"
FIRES_S = 40.0

_MINUTES = re.compile(r"\b(\d+)m\b")
_SECONDS = re.compile(r"\* 60\b")


def hurried(rules: str) -> str:
    """Return rules with seconds in place of minutes: ranges, `for`, and thresholds that count seconds."""
    return _SECONDS.sub("* 1", _MINUTES.sub(r"\1s", rules))


def free_ports(host: str, count: int) -> list[int]:
    """Return ports of the host that nothing listens on."""
    taken = [socket.create_server((host, 0)) for _ in range(count)]
    ports: list[int] = [of.getsockname()[1] for of in taken]
    for of in taken:
        of.close()
    return ports


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def query(self, query: str) -> list[dict[str, Any]]:
        """Return the labels of the series that a query finds; none before the start."""
        async with httpx.AsyncClient(base_url=self._url) as client:
            try:
                response = await client.get("/api/v1/query", params={"query": query})
            except httpx.TransportError:
                return []
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return []
        answer = response.raise_for_status().json()
        return [found["metric"] for found in answer["data"]["result"]]

    async def firing(self) -> set[str]:
        """Return the alerts that fire now."""
        return {found["alertname"] for found in await self.query('ALERTS{alertstate="firing"}')}

    async def fired(self) -> set[str]:
        """Return the alerts that have fired since the start."""
        found = await self.query('max_over_time(ALERTS{alertstate="firing"}[10m])')
        return {labels["alertname"] for labels in found}

    async def fires(self, *alerts: str) -> None:
        """Wait until each of the alerts has fired at some time since the start."""

        async def missing() -> set[str]:
            return set(alerts) - await self.fired()

        try:
            await wait_until(lambda: _is_empty(missing()), "alerts", FIRES_S, 0.2)
        except AssertionError:
            raise AssertionError(f"waited {FIRES_S} s for {await missing()} to fire") from None

    async def clears(self, *alerts: str) -> None:
        """Wait until none of the alerts fires. Without names: until no alert fires."""

        async def left() -> set[str]:
            return await self.firing() & set(alerts) if alerts else await self.firing()

        try:
            await wait_until(lambda: _is_empty(left()), "alerts", FIRES_S, 0.2)
        except AssertionError:
            raise AssertionError(f"waited {FIRES_S} s for {await left()} to clear") from None


async def _is_empty(names: Any) -> bool:
    return not await names


@contextmanager
def prometheus(folder: Path, host: str, workers: Sequence[str], serve: str) -> Iterator[Prometheus]:
    """Yield a Prometheus that scrapes these addresses."""
    folder.mkdir()
    for path in RULES.glob("*.yml"):
        (folder / path.name).write_text(hurried(path.read_text()))
    # The console reads Redis for each scrape.
    jobs = [("fetchfleet-worker", list(workers), "1s"), ("fetchfleet-serve", [serve], "2s")]
    config = {
        "global": {"evaluation_interval": "500ms"},
        "rule_files": [str(folder / path.name) for path in RULES.glob("*.yml")],
        "scrape_configs": [
            {
                "job_name": job,
                "scrape_interval": every,
                "scrape_timeout": every,
                "static_configs": [{"targets": targets}],
            }
            for job, targets, every in jobs
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    [port] = free_ports(host, 1)
    options = {
        "config.file": folder / "prometheus.yml",
        "storage.tsdb.path": folder / "data",
        "web.listen-address": f"{host}:{port}",
    }
    command = ["prometheus", "--log.level=warn", *(f"--{name}={value}" for name, value in options.items())]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,  # noqa: PLW1509 no thread of a test holds a lock
        )
    try:
        yield Prometheus(f"http://{host}:{port}")
    finally:
        process.kill()
        process.wait()
