"""Makes a worker's engine, by its settings."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from worker.http import trust
from worker.http.client import build_client, build_network, build_pools
from worker.http.engine import Engine, HttpxEngine
from worker.http.own_redis import Whereabouts
from worker.http.pools import Pools
from worker.http.traffic import Traffic
from worker.http.which import REQWEST, faults
from worker.policy import PolicyError
from worker.settings import Settings


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
    for fault in faults(settings.engine, settings.policy):
        raise PolicyError(fault)
    from worker.http.reqwest.clients import Clients  # noqa: PLC0415 an extra
    from worker.http.reqwest.engine import ReqwestEngine  # noqa: PLC0415 an extra

    trust.check(settings.policy)
    traffic.counted = False
    clients = Clients(build_network(settings, own_redis), settings.policy)
    told = log if settings.log_level == "debug" else None
    engine = ReqwestEngine(clients, settings.user_agent, settings.in_folder, told)
    return Exchanging(engine, clients, clients.aclose)
