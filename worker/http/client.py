"""The one httpx client of a worker process: made at startup, shared by all, closed at shutdown."""

from functools import lru_cache
from typing import Any

import httpx

from worker.http.content import own_headers
from worker.http.exchanges import hooks
from worker.http.names import parse_nameservers
from worker.http.network import GuardedNetwork
from worker.http.own_redis import Whereabouts
from worker.http.resolver import Resolver
from worker.http.traffic import Traffic
from worker.http.transport import LanePools
from worker.http.trust import Contexts
from worker.policy import Timeouts
from worker.settings import Settings


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
