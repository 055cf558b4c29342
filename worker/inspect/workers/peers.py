"""The other live workers of a fleet: their abilities, and the settings in which workers differ."""

from collections.abc import Mapping, Sequence

from redis.asyncio import Redis
from structlog.typing import FilteringBoundLogger

from fetchfleet.worker.fetch.rules.abilities import Abilities
from fetchfleet.worker.inspect.registration import Registration, abilities_of
from fetchfleet.worker.inspect.snapshot import worker_reports
from fetchfleet.worker.observability import events
from fetchfleet.worker.util.clock import mono_s

KNOWN_FOR_S = 1.0
"""The time for which abilities are cached: about that of a heartbeat, which publishes them."""

Differences = dict[str, dict[str, list[str]]]
"""The names of the workers, by setting and value."""


class Peers:
    """The other live workers, as seen by one worker process."""

    def __init__(
        self, redis: Redis, own: Registration, log: FilteringBoundLogger, known_for_s: float = KNOWN_FOR_S
    ) -> None:
        self._redis = redis
        self._own = own
        self._log = log
        self._known_for_s = known_for_s
        self._read_s = float("-inf")
        self._abilities: list[Abilities] = []
        self._logged: object = {}

    async def abilities(self) -> Sequence[Abilities]:
        """Return the distinct abilities of the other live workers that acquire lanes."""
        now_s = mono_s()
        if now_s - self._read_s > self._known_for_s:
            reports = await worker_reports(self._redis)
            found = {
                abilities_of(report.registration)
                for instance, report in reports.items()
                if instance != self._own.instance and not report.draining and not report.lacking
            }
            self._abilities, self._read_s = list(found), now_s
        return self._abilities

    async def look_for_differences(self) -> None:
        """Log the settings in which live workers differ, unless they are those logged last."""
        reports = await worker_reports(self._redis)
        found = differences([report.registration for report in reports.values() if report.registration])
        values = {setting: sorted(workers) for setting, workers in found.items()}
        if values and values != self._logged:
            events.workers_differ(self._own.instance, found, self._log)
        self._logged = values


def differences(workers: Sequence[Registration]) -> Differences:
    """Return the settings in which workers differ, with the workers of each value. Pure.

    For egress and policy, the value is a digest. Workers that do not publish a setting are left out.
    """
    found: Differences = {}
    for worker in workers:
        for setting, value in _settings(worker).items():
            if value:
                found.setdefault(setting, {}).setdefault(value, []).append(worker.name)
    return {
        setting: {value: sorted(names) for value, names in sorted(values.items())}
        for setting, values in found.items()
        if len(values) > 1
    }


def _settings(worker: Registration) -> Mapping[str, str]:
    in_folder = "" if worker.abilities is None else "given" if worker.in_folder else "none"
    return {
        "sink": worker.sink,
        "in_folder": in_folder,
        "egress": worker.egress,
        "policy": worker.policy,
    }
