"""Construction of a worker's engine from its settings."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from structlog.typing import FilteringBoundLogger

from fetchfleet.worker.http.base import Engine, Pools
from fetchfleet.worker.http.connection_stats import ConnectionStats
from fetchfleet.worker.http.direct_engine import DirectEngine
from fetchfleet.worker.http.net.dns import Resolver
from fetchfleet.worker.http.net.guard import GuardedNetwork
from fetchfleet.worker.http.net.pool import LanePools
from fetchfleet.worker.http.net.redis_guard import RedisAddresses
from fetchfleet.worker.http.net.tls_contexts import TlsContexts
from fetchfleet.worker.settings import DIRECT, Settings, parse_nameservers


class HttpStack(NamedTuple):
    """An engine with its connection pools."""

    engine: Engine
    pools: Pools
    aclose: Callable[[], Awaitable[None]]
    """Closes engine and pools."""


def build_engine(
    settings: Settings, own_redis: RedisAddresses, stats: ConnectionStats, log: FilteringBoundLogger
) -> HttpStack:
    """Return the engine that the settings name. Raises PolicyError if a TLS file is unusable."""
    resolver = Resolver(parse_nameservers(settings.nameservers))
    network = GuardedNetwork(settings.egress, resolver, own_redis)
    pools = LanePools(network, TlsContexts(settings.policy), stats)
    if settings.engine == DIRECT:
        debug_log = log if settings.log_level == "debug" else None
        engine = DirectEngine(pools, settings.user_agent, settings.in_folder, debug_log)
        return HttpStack(engine, pools, pools.aclose)
    from fetchfleet.worker.http.httpx_engine import HttpxEngine, LaneTransport, build_client  # noqa: PLC0415 slow

    client = build_client(settings, LaneTransport(pools), log)
    return HttpStack(HttpxEngine(client, settings.in_folder), pools, client.aclose)
