"""The Redis of the fleet is never dialled by a fetch, whatever is allowed and however it is spelled."""

import asyncio
import socket
from collections.abc import AsyncIterator
from ipaddress import ip_address
from typing import Any

import pytest

from fetchfleet import Outcome, Reason
from fetchfleet.worker.errors import UnresolvedError
from fetchfleet.worker.http.net.redis_guard import RedisAddresses, is_own_address
from tests.component.conftest import Start
from tests.support.nameserver import NAME, Nameserver, addresses
from tests.support.own_redis import own_redis
from tests.support.waiting import wait_until
from tools.origin import behaviours as o
from tools.origin.server import Origin

EVERYWHERE = "0.0.0.0/0,::/0"


def free_port() -> int:
    """Return a port without a listener."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@pytest.fixture
async def own() -> AsyncIterator[tuple[str, int]]:
    """Yield the URL of a Redis's unix socket, and its TCP port."""
    port = free_port()
    with own_redis("--port", str(port), "--bind", "127.0.0.1") as server:
        await wait_until(server.responds, "Redis")
        yield server.url, port


@pytest.mark.parametrize("by_tcp", [True, False])
async def test_no_spelling_reaches_the_redis_of_the_fleet(
    own: tuple[str, int], start: Start, names: Nameserver, origin: Origin, *, by_tcp: bool
) -> None:
    """Addresses of this machine, names and redirects are refused, also if the worker uses the unix socket."""
    url, port = own
    names.replies[NAME] = [addresses("127.0.0.1", ttl_s=60)]
    origin.behaviour = o.redirect(f"http://127.0.0.1:{port}/")
    url = f"redis://localhost:{port}" if by_tcp else url
    worker = await start(redis_url=url, allow_net=EVERYWHERE, nameservers=names.address)
    hosts = ["127.0.0.1", "localhost", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", NAME]

    results = await worker.results([*(f"http://{host}:{port}/" for host in hosts), origin.url()])

    assert {(Outcome.FAILED, Reason.EGRESS_REFUSED, 1)} == {
        (result.outcome, result.reason, result.attempts) for result in results
    }


async def test_other_ports_than_that_of_redis_are_dialled(
    own: tuple[str, int], start: Start, origin: Origin
) -> None:
    """The guard covers one service, not the machine."""
    worker = await start(redis_url=own[0], allow_net=EVERYWHERE)

    assert Outcome.STORED is (await worker.one(origin.url())).outcome


async def test_all_addresses_that_the_name_of_redis_has_had_are_guarded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Earlier addresses stay guarded, also while the name does not resolve."""
    lookups: list[Any] = [["10.0.0.7"], ["10.0.0.8", "fd00::8"], OSError("not found")]

    async def found(*_: Any, **__: Any) -> list[Any]:
        what = lookups.pop(0)
        if isinstance(what, OSError):
            raise what
        return [(0, 0, 0, "", (address, 6379)) for address in what]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found)
    redis = RedisAddresses("redis.example", 6379, refresh_s=0)
    where = [await redis.at(6379) for _ in range(3)]
    addresses = [[str(address) for address in sorted(at.addresses, key=str)] for at in where if at]

    assert [["10.0.0.7"], *[["10.0.0.7", "10.0.0.8", "fd00::8"]] * 2] == addresses
    assert await redis.at(80) is None
    assert not lookups


async def test_the_port_of_a_redis_whose_name_never_resolved_is_not_dialled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such a Redis may be at any address."""

    async def never(*_: Any, **__: Any) -> list[Any]:
        raise OSError("not found")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)

    with pytest.raises(UnresolvedError):
        await RedisAddresses("redis.example", 6379).at(6379)


@pytest.mark.parametrize(("address", "ours"), [("127.0.0.1", True), ("::1", True), ("192.0.2.1", False)])
def test_an_address_of_this_machine_is_recognized_without_a_packet(address: str, *, ours: bool) -> None:
    """Linux would use the address itself as the source address."""
    assert is_own_address(ip_address(address)) is ours
