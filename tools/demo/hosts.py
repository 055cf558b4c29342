"""The demo's well-behaved and misbehaving hosts, and the fetches for each."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from tools.origin.behaviours import (
    big,
    by_path,
    fail_for,
    latency,
    ok,
    redirect,
    slow,
    status,
    throttle_window,
    truncated,
)
from tools.origin.server import Behaviour, Exchange

HEALTHY = tuple(f"healthy-{number}" for number in range(1, 13))
LIMITED = "limited"
HEALING = "healing"
DOWN = "down"
CUTTING = "cutting"
TRICKLING = "trickling"
POINTING = ("pointing-1", "pointing-2")
BIG = "big"

BODY = bytes(range(256)) * 40
BIG_BYTES = 110_000_000
HEALS_AFTER_S = 3.0
LIMIT_PER_S = 20
RETRY_AFTER_S = 2.0

BEHAVIOURS = {
    **dict.fromkeys(HEALTHY, "healthy"),
    LIMITED: f"429 above {LIMIT_PER_S} a second",
    HEALING: f"503 for its first {HEALS_AFTER_S:.0f} s",
    DOWN: "down",
    CUTTING: "truncates every third body, once",
    TRICKLING: "trickles bodies",
    POINTING[0]: "redirects to itself and to the other",
    POINTING[1]: "redirects to itself and to the other",
    BIG: f"bodies of {BIG_BYTES // 1_000_000} MB",
}

# A lane is a host, regardless of the port. On one machine each host is a loopback address. In containers the
# names are aliases of one container (docker-compose.yml), and each has its own port.
LOOPBACK = {name: f"127.0.0.{number}" for number, name in enumerate(BEHAVIOURS, 21)}
PORTS = {name: port for port, name in enumerate(BEHAVIOURS, 8001)}
REPORT_PORT = 8000
"""The port of the report endpoint in the container."""
CLOSED_PORT = 1

DEFAULT_CONCURRENCY = 8
CONCURRENCY = {TRICKLING: 12, BIG: 2}


def policy(hosts: Mapping[str, str]) -> str:
    """Return a policy with short waits. hosts: the host in URLs, by name."""
    tables = [f'[host."{hosts[name]}"]\nconcurrency = {limit}' for name, limit in CONCURRENCY.items()]
    default = [
        "[default]",
        f"concurrency = {DEFAULT_CONCURRENCY}",
        "retry_base_s = 0.2",
        "retry_cap_s = 2",
        "breaker_reset_s = 1",
    ]
    return "\n".join([*default, "", *tables, ""])


class Group(NamedTuple):
    """Fetches of one kind from one host."""

    host: str
    fetches: int
    path: Callable[[int], str]
    """Makes the path of the i-th fetch."""
    outcome: str = "stored"
    """The expected outcome."""
    fields: Mapping[str, Any] = {}
    """Further fields of each fetch."""


GROUPS = (
    *(Group(host, 205, lambda i: f"/files/{i}") for host in HEALTHY),
    *(Group(host, 1, lambda i: f"/gone/{i}", "failed") for host in HEALTHY[:4]),
    Group(LIMITED, 80, lambda i: f"/api/{i}"),
    Group(HEALING, 100, lambda i: f"/files/{i}"),
    Group(DOWN, 20, lambda i: f"/files/{i}", "failed", {"deadline_s": 12}),
    Group(CUTTING, 60, lambda i: f"/files/{i}"),
    Group(CUTTING, 1, lambda i: f"/never-whole/{i}", "failed"),
    Group(TRICKLING, 24, lambda i: f"/drop/{i}"),
    Group(BIG, 3, lambda i: f"/image/{i}"),
)
REDIRECTS_EACH_WAY = 110


def behaviours() -> Mapping[str, Behaviour]:
    """Return the behaviour of each listening host, by name."""
    files = by_path({"/gone": status(404)}, otherwise=ok(BODY))
    return {
        **{host: latency(0.002 * index, files) for index, host in enumerate(HEALTHY)},
        LIMITED: throttle_window(LIMIT_PER_S, RETRY_AFTER_S, ok(BODY)),
        HEALING: fail_for(HEALS_AFTER_S, 503, ok(BODY)),
        CUTTING: by_path({"/never-whole": _cut()}, otherwise=_cut_every_third()),
        TRICKLING: slow(b"drip" * 64, every_s=0.25, total_chunks=8),
        **{host: by_path({"/to/": redirect(_target)}, otherwise=ok(BODY)) for host in POINTING},
        BIG: big(BIG_BYTES),
    }


def fetches(urls: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield every fetch of the demo as JSON fields, the hosts interleaved. urls: base URLs by name."""
    queues = [_of_group(group, urls) for group in GROUPS]
    queues += [_redirects(urls, POINTING[0], POINTING[1]), _redirects(urls, POINTING[1], POINTING[0])]
    while queues:
        for queue in list(queues):
            item = next(queue, None)
            if item is None:
                queues.remove(queue)
            else:
                yield item


def _of_group(group: Group, urls: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for i in range(group.fetches):
        url = urls[group.host] + group.path(i)
        yield {"url": url, "meta": {"expect": group.outcome}, **group.fields}


def _redirects(urls: Mapping[str, str], via: str, to: str) -> Iterator[dict[str, Any]]:
    for i in range(REDIRECTS_EACH_WAY):
        target = f"{urls[to]}/moved/{i}" if i % 2 else f"/here/{i}"
        yield {"url": f"{urls[via]}/to/{target}", "meta": {"expect": "stored"}}


def _target(target: str) -> str:
    return target.removeprefix("/to/")


def _cut() -> Behaviour:
    return truncated(BODY[: len(BODY) // 2], len(BODY))


def _cut_every_third() -> Behaviour:
    """Truncate every third file on its first request."""
    complete, cut = ok(BODY), _cut()
    requested: set[str] = set()

    async def answer(x: Exchange) -> None:
        target = x.request.target
        first = target not in requested
        requested.add(target)
        await (cut if first and len(requested) % 3 == 0 else complete)(x)

    return answer
