"""The one httpx client of a worker process: made at startup, shared by all, closed at shutdown."""

from functools import lru_cache
from typing import Any

import httpx

from fetchfleet.worker.http.connection_stats import Traffic
from fetchfleet.worker.http.httpx_engine.event_hooks import hooks
from fetchfleet.worker.http.httpx_engine.transport import LanePools
from fetchfleet.worker.http.net.dns import Resolver
from fetchfleet.worker.http.net.guard import GuardedNetwork
from fetchfleet.worker.http.net.redis_guard import Whereabouts
from fetchfleet.worker.http.net.tls_contexts import Contexts
from fetchfleet.worker.http.request_body import own_headers
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.settings import Settings, parse_nameservers


def build_pools(settings: Settings, own_redis: Whereabouts, traffic: Traffic) -> LanePools:
    """The transport: pools per lane behind the egress guard, their connections counted.

    Raises PolicyError where TLS cannot be had as the policy says.
    """
    return LanePools(build_network(settings, own_redis), Contexts(settings.policy), traffic)


def build_network(settings: Settings, own_redis: Whereabouts) -> GuardedNetwork:
    """The egress guard, and the names it asks for."""
    return GuardedNetwork(settings.egress, Resolver(parse_nameservers(settings.nameservers)), own_redis)


def build_client(settings: Settings, pools: LanePools, log: Any) -> httpx.AsyncClient:
    """The client: nothing from the environment, no cookie kept, no redirect followed by itself.

    Its timeouts are the default policy's; each request brings those of its lane. Its limits are the
    pools': as many connections to a host as the lane's policy lets fetches run. At debug level it tells of
    each exchange; else there is nothing to call.
    """
    return _Client(
        transport=pools,
        timeout=httpx_timeout(settings.policy.default.timeouts),
        headers=own_headers(settings.user_agent),
        follow_redirects=False,
        event_hooks=hooks(log) if settings.log_level == "debug" else None,
        trust_env=False,
    )


class _NoCookies(httpx.Cookies):
    """None is kept; a jar that refuses each looks at every answer first."""

    def extract_cookies(self, response: httpx.Response) -> None:
        """Nothing."""


class _Client(httpx.AsyncClient):
    """Without cookies, whatever hosts say."""

    _NONE = _NoCookies()

    @property  # type: ignore[misc]  # nobody sets any
    def cookies(self) -> httpx.Cookies:
        """None."""
        return self._NONE


@lru_cache(maxsize=1024)
def httpx_timeout(timeouts: Timeouts) -> httpx.Timeout:
    """Httpx's four waits; the total is held around the whole attempt, since httpx knows none."""
    return httpx.Timeout(
        connect=timeouts.connect_s,
        read=timeouts.read_s,
        write=timeouts.write_s,
        pool=timeouts.pool_s,
    )
