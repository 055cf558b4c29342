"""A line every ten seconds that says how a worker is: its connections, its loop, its memory, its backlog."""

import asyncio
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fetchfleet.worker.http.connection_stats import Traffic
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.settler import Settler
from fetchfleet.worker.observability import events
from fetchfleet.worker.observability.percentiles import Recent, percentile
from fetchfleet.worker.util.clock import mono_s

HEARTBEAT_S = 10.0
LAG_EVERY_S = 0.1
"""How often it is looked how late the loop comes round."""

_PAGE_BYTES = resource.getpagesize()


class Heartbeat:
    """One for a worker process; `run` is its task."""

    def __init__(self, traffic: Traffic, lanes: Mapping[str, Lane], settler: Settler, log: Any) -> None:
        self._traffic = traffic
        self._lanes = lanes
        self._settler = settler
        self._log = log
        self._lag_s = Recent()
        self._told_s = mono_s()
        self._told = (0, 0, 0)

    async def run(self) -> None:
        """Tell every HEARTBEAT_S, until cancelled."""
        while True:
            asked_s = mono_s()
            await asyncio.sleep(LAG_EVERY_S)
            now_s = mono_s()
            self._lag_s.add(max(0.0, now_s - asked_s - LAG_EVERY_S))
            if now_s - self._told_s >= HEARTBEAT_S:
                self.tell()

    def tell(self) -> None:
        """One line, of what has been since the last."""
        now_s, traffic, lag_s = mono_s(), self._traffic, self._lag_s.taken()
        counts = (traffic.opened, traffic.reused, traffic.closed)
        opened, reused, closed = (now - then for now, then in zip(counts, self._told, strict=True))
        connections = {"opened": opened, "reused": reused, "closed": closed}
        connections["open"] = traffic.opened - traffic.closed
        events.heartbeat(
            self._log,
            interval_s=round(now_s - self._told_s, 1),
            lanes=len(self._lanes),
            in_flight=sum(len(lane.in_flight) for lane in self._lanes.values()),
            settling=self._settler.count,
            **_spread("pool_wait", traffic.pool_wait_s),
            **(connections if traffic.counted else dict.fromkeys(connections)),
            **_spread("tcp", traffic.tcp_s),
            **_spread("tls", traffic.tls_s),
            lag_p50_ms=_ms(percentile(lag_s, 0.5)),
            lag_max_ms=_ms(percentile(lag_s, 1)),
            rss_bytes=rss_bytes(),
            open_files=open_files(),
        )
        self._told_s, self._told = now_s, counts


def rss_bytes() -> int:
    """How much memory this process has in use (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def open_files() -> int:
    """How many descriptors this process has open, without the one by which we look."""
    return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 no paths are wanted


def _spread(name: str, figures: Recent) -> dict[str, float | None]:
    taken = figures.taken()
    return {f"{name}_p50_ms": _ms(percentile(taken, 0.5)), f"{name}_p99_ms": _ms(percentile(taken, 0.99))}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
