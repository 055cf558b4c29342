"""Workers that no longer send heartbeats, and what becomes of the lanes that they hold."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import msgspec

from fetchfleet.jobs import keys
from fetchfleet.worker.inspect.registration import name_of
from fetchfleet.worker.util.quantities import age, count

SILENT_MS = 3_000
"""The time without a heartbeat from which a worker is silent. Workers send one a second."""

SWEEP_MS = 1_000
"""The time after which a sweep finds a lease that has lapsed."""


class VanishedWorker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that sends no heartbeat and has not stopped in order."""

    id: str
    """Its name."""
    instance: str
    silent_s: float | None
    """The time since its last heartbeat; None if that is unknown, but more than 5 s."""
    hosts: int
    """The lanes that it holds, of those that were read."""
    lease_left_s: float
    """The time within which another worker may take the last of them over."""
    has_others: bool = True
    """True if another worker sends heartbeats."""
    taken_over_s: float | None = None
    """The time since its lanes were taken over; None before."""

    @property
    def title(self) -> str:
        """The problem in a few words."""
        if self.taken_over_s is not None:
            return f"{self.id} vanished"
        return f"{self.id} vanished {_silence(self.silent_s, ' ago')}"

    @property
    def detail(self) -> str:
        """The lanes that it holds or held, and when another worker takes them over."""
        if self.taken_over_s is not None:
            return (
                f"It sends no heartbeat; its hosts were freed for other workers {age(self.taken_over_s)} ago"
            )
        if not self.hosts:
            return "It held no host"
        return (
            f"It held {count(self.hosts, 'host')}; {_takeover(self.lease_left_s, has_others=self.has_others)}"
        )


class Heartbeats(msgspec.Struct, frozen=True, kw_only=True):
    """The heartbeats of a fleet, as seen at one time."""

    now_ms: int
    last_ms: Mapping[str, int]
    """The time of the last heartbeat (Unix ms) of each worker that is listed, by instance."""
    reports: Collection[str]
    """The instances with a report, which each heartbeat writes. Drained workers are not listed."""
    deaths_ms: Mapping[str, int] = {}
    """The time when lanes were reclaimed from a worker (Unix ms), by instance, of the last minute."""

    def is_silent(self, instance: str) -> bool:
        """Return whether a worker that holds lanes no longer sends heartbeats."""
        at_ms = self.last_ms.get(instance)
        return instance not in self.reports if at_ms is None else self.now_ms - at_ms >= SILENT_MS

    @property
    def has_others(self) -> bool:
        """True if a worker sends heartbeats."""
        return not all(map(self.is_silent, self.reports))

    def silent_s(self, instance: str) -> float | None:
        """Return the time since the last heartbeat of a worker; None if unknown."""
        at_ms = self.last_ms.get(instance)
        return None if at_ms is None else max(0, self.now_ms - at_ms) / 1000

    def holder_text(self, owner: str, lease_ends_ms: int | None) -> str:
        """Return what holds up a lane with a silent owner, and for how long; empty for another owner."""
        if not self.is_silent(owner):
            return ""
        silence = _silence(self.silent_s(owner), "")
        return (
            f"held by {name_of(owner)}, which has sent no heartbeat for {silence};"
            f" {_takeover(self.lease_left_s(lease_ends_ms), has_others=self.has_others)}"
        )

    def lease_left_s(self, lease_ends_ms: int | None) -> float:
        """Return the time within which a sweep reclaims a lane."""
        left_ms = max(0, min((lease_ends_ms or 0) - self.now_ms, keys.LONGEST_WAIT_MS))
        return (left_ms + SWEEP_MS) / 1000

    def vanished(self, held: Iterable[tuple[str, int | None]]) -> list[VanishedWorker]:
        """Return the vanished workers. held: the owner of each held lane, and the end of its lease."""
        hosts: Counter[str] = Counter()
        left_s: dict[str, float] = {}
        for owner, lease_ends_ms in held:
            hosts[owner] += 1
            left_s[owner] = max(left_s.get(owner, 0.0), self.lease_left_s(lease_ends_ms))
        # A name without a report is that of a worker about to start.
        present = {*hosts, *(worker for worker in self.last_ms if worker in self.reports)}
        silent = {worker for worker in present if self.is_silent(worker)}
        dead = {worker for worker in self.deaths_ms if worker not in present and worker not in self.reports}
        return [
            VanishedWorker(
                id=name_of(worker),
                instance=worker,
                silent_s=self.silent_s(worker),
                hosts=hosts[worker],
                lease_left_s=left_s.get(worker, 0.0),
                has_others=self.has_others,
                taken_over_s=self._since_s(self.deaths_ms[worker]) if worker in dead else None,
            )
            for worker in sorted(silent | dead)
        ]

    def _since_s(self, at_ms: int) -> float:
        return max(0, self.now_ms - at_ms) / 1000


def _silence(silent_s: float | None, ago: str) -> str:
    return f"more than {keys.WORKER_TTL_MS // 1000} s{ago}" if silent_s is None else f"{silent_s:.1f} s{ago}"


def _takeover(lease_left_s: float, *, has_others: bool) -> str:
    """Return when a lane of a silent worker goes on."""
    if not has_others:
        return "no other worker is running; start one: fetchfleet worker"
    return f"another worker takes over when its lease ends, in at most {math.ceil(lease_left_s)} s"
