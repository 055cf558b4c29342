"""The one httpx client of a worker process: made at startup, shared by all, closed at shutdown."""

from functools import lru_cache
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

from worker.http.names import parse_nameservers
from worker.http.network import GuardedNetwork
from worker.http.own_redis import Whereabouts
from worker.http.resolver import Resolver
from worker.http.transport import LanePools
from worker.policy import Timeouts
from worker.settings import Settings


def build_pools(settings: Settings, own_redis: Whereabouts) -> LanePools:
    """The transport: pools per lane behind the egress guard."""
    resolver = Resolver(parse_nameservers(settings.nameservers))
    return LanePools(GuardedNetwork(settings.egress, resolver, own_redis))


def build_client(settings: Settings, pools: LanePools) -> httpx.AsyncClient:
    """The client: nothing from the environment, no cookie kept, no redirect followed by itself.

    Its timeouts are the default policy's; each request brings those of its lane. Its limits are the
    pools': as many connections to a host as the lane's policy lets fetches run.
    """
    return httpx.AsyncClient(
        transport=pools,
        timeout=httpx_timeout(settings.policy.default.timeouts),
        headers={
            "User-Agent": settings.user_agent,
            "Accept": "*/*",
            # Bodies are kept as sent: a length and a digest are of what the host has.
            "Accept-Encoding": "identity",
        },
        cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),
        follow_redirects=False,
        trust_env=False,
    )


@lru_cache(maxsize=1024)
def httpx_timeout(timeouts: Timeouts) -> httpx.Timeout:
    """Httpx's four waits; the total is held around the whole attempt, since httpx knows none."""
    return httpx.Timeout(
        connect=timeouts.connect_s,
        read=timeouts.read_s,
        write=timeouts.write_s,
        pool=timeouts.pool_s,
    )
