"""Makes a worker's engine, by its settings."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from fetchfleet.worker.http.base import Engine, Pools
from fetchfleet.worker.http.connection_stats import Traffic
from fetchfleet.worker.http.httpx_engine.client import build_client, build_network, build_pools
from fetchfleet.worker.http.httpx_engine.engine import HttpxEngine
from fetchfleet.worker.http.net import tls_contexts
from fetchfleet.worker.http.net.redis_guard import Whereabouts
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.settings import REQWEST, Settings, engine_faults


class Exchanging(NamedTuple):
    """An engine, what it keeps for each lane, and how all of it is closed."""

    engine: Engine
    pools: Pools
    aclose: Callable[[], Awaitable[None]]


def build_engine(settings: Settings, own_redis: Whereabouts, traffic: Traffic, log: Any) -> Exchanging:
    """The engine that the settings name; PolicyError where it cannot do as the policy says."""
    if settings.engine == REQWEST:
        return _reqwest(settings, own_redis, traffic, log)
    pools = build_pools(settings, own_redis, traffic)
    client = build_client(settings, pools, log)
    return Exchanging(HttpxEngine(client, settings.in_folder, traffic), pools, client.aclose)


def _reqwest(settings: Settings, own_redis: Whereabouts, traffic: Traffic, log: Any) -> Exchanging:
    for fault in engine_faults(settings.engine, settings.policy):
        raise PolicyError(fault)
    from fetchfleet.worker.http.reqwest.client_cache import Clients  # noqa: PLC0415 an extra
    from fetchfleet.worker.http.reqwest.engine import ReqwestEngine  # noqa: PLC0415 an extra

    tls_contexts.check(settings.policy)
    traffic.counted = False
    clients = Clients(build_network(settings, own_redis), settings.policy)
    told = log if settings.log_level == "debug" else None
    engine = ReqwestEngine(clients, settings.user_agent, settings.in_folder, told)
    return Exchanging(engine, clients, clients.aclose)
