"""Builds a worker's engine from its settings."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from structlog.typing import FilteringBoundLogger

from fetchfleet.worker.http.base import Engine, Pools
from fetchfleet.worker.http.connection_stats import ConnectionStats
from fetchfleet.worker.http.httpx_engine.engine import HttpxEngine, build_client
from fetchfleet.worker.http.httpx_engine.transport import LaneTransport
from fetchfleet.worker.http.net import tls_contexts
from fetchfleet.worker.http.net.dns import Resolver
from fetchfleet.worker.http.net.guard import GuardedNetwork
from fetchfleet.worker.http.net.redis_guard import RedisAddresses
from fetchfleet.worker.settings import Settings, parse_nameservers


class HttpStack(NamedTuple):
    """An engine, its connections by lane, and the function that closes all of it."""

    engine: Engine
    pools: Pools
    aclose: Callable[[], Awaitable[None]]


def build_engine(
    settings: Settings, own_redis: RedisAddresses, stats: ConnectionStats, log: FilteringBoundLogger
) -> HttpStack:
    """Return the engine that the settings name; raises PolicyError if a file of the policy cannot be used."""
    resolver = Resolver(parse_nameservers(settings.nameservers))
    network = GuardedNetwork(settings.egress, resolver, own_redis)
    transport = LaneTransport(network, tls_contexts.TlsContexts(settings.policy), stats)
    client = build_client(settings, transport, log)
    return HttpStack(HttpxEngine(client, settings.in_folder, stats), transport, client.aclose)
