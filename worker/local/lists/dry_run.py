"""The report of a dry run: the fetches of a list by host, and how long they take under a policy. Pure."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from fetchfleet.jobs.contract.urls import lane_of_url
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.util.quantities import age, count

ASSUMED_FETCH_S = 0.5
"""The time of a fetch that the estimate assumes."""
MAX_HOSTS = 200_000
"""The most hosts that are counted; the fetches of further hosts are counted together."""
SHOWN_HOSTS = 20
_HOST_CHARS = 60


class HostCounts:
    """The number of fetches of each host, in bounded memory."""

    def __init__(self) -> None:
        self.by_host = Counter[str]()
        self.of_others = 0
        """The fetches of hosts beyond MAX_HOSTS."""

    def add(self, url: str) -> None:
        """Count a fetch, given its canonical URL."""
        host = lane_of_url(url)
        if host in self.by_host or len(self.by_host) < MAX_HOSTS:
            self.by_host[host] += 1
        else:
            self.of_others += 1

    def clear(self) -> None:
        """Forget all fetches, because another pass begins."""
        self.by_host.clear()
        self.of_others = 0

    @property
    def total(self) -> int:
        """The number of fetches."""
        return self.by_host.total() + self.of_others


class Estimate(NamedTuple):
    """The time that the fetches of a host take."""

    seconds: float
    reason: str
    """The key of the policy that determines it."""
    is_bound: bool = False
    """The time cannot be less, however fast the host is."""


def estimate(fetches: int, policy: LanePolicy) -> Estimate:
    """Return the time of a host's fetches, if each takes ASSUMED_FETCH_S and none fails."""
    by_concurrency = fetches * ASSUMED_FETCH_S / policy.max_concurrency
    if policy.rate_per_s and fetches / policy.rate_per_s > by_concurrency:
        return Estimate(fetches / policy.rate_per_s, f"rate_per_s = {policy.rate_per_s:g}", is_bound=True)
    return Estimate(by_concurrency, f"concurrency = {policy.max_concurrency}")


def report(hosts: HostCounts, policy: Policy, slots: int) -> Iterator[str]:
    """Yield the lines of the report. slots: concurrent fetches of all workers together; 0 if unknown."""
    shown = hosts.by_host.most_common(SHOWN_HOSTS)
    width = min(_HOST_CHARS, max([len(host) for host, _ in shown] + [len("host")]))
    yield f"{'host':{width}}  {'fetches':>11}  {'share':>6}  time"
    for host, fetches in shown:
        share, time = fetches / hosts.total, age(estimate(fetches, policy.for_lane(host)).seconds)
        yield f"{host[:_HOST_CHARS]:{width}}  {fetches:11,}  {share:6.1%}  {time}"
    more = len(hosts.by_host) - len(shown)
    rest = hosts.total - sum(fetches for _, fetches in shown)
    if rest:
        name = f"{count(more, 'other host')}{' or more' if hosts.of_others else ''}"
        yield f"{name:{width}}  {rest:11,}  {rest / hosts.total:6.1%}"
    yield expected_duration(hosts, policy, slots)


def expected_duration(hosts: HostCounts, policy: Policy, slots: int) -> str:
    """Return the line with the time of the slowest host, or of the workers if that is longer."""
    slowest, longest = "", Estimate(0.0, "")
    for host, fetches in hosts.by_host.items():
        of_host = estimate(fetches, policy.for_lane(host))
        if of_host.seconds > longest.seconds:
            slowest, longest = host, of_host
    on_workers_s = hosts.total * ASSUMED_FETCH_S / slots if slots else 0.0
    by = f"{slowest[:_HOST_CHARS]} ({longest.reason})"
    if on_workers_s > longest.seconds:
        by, longest = f"the workers ({slots:,} fetches at once)", Estimate(on_workers_s, "")
    return (
        f"expected duration: {'at least' if longest.is_bound else 'about'} {age(longest.seconds)},"
        f" determined by {by}; assumes {ASSUMED_FETCH_S:g} s a fetch and no retries"
    )
