"""The fleet's own Redis is never dialled, whatever is allowed and however it is spelt."""

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
from tests.support.nameserver import NAME, Nameserver, at
from tests.support.own_redis import own_redis
from tests.support.waiting import wait_until
from tools.origin import behaviours as o
from tools.origin.server import Origin

EVERYWHERE = "0.0.0.0/0,::/0"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@pytest.fixture
async def own() -> AsyncIterator[tuple[str, int]]:
    """The URL of a Redis's unix socket, and the port on which it listens besides."""
    port = free_port()
    with own_redis("--port", str(port), "--bind", "127.0.0.1") as server:
        await wait_until(server.answers, "Redis")
        yield server.url, port


@pytest.mark.parametrize("by_tcp", [True, False])
async def test_no_spelling_reaches_our_own_redis(
    own: tuple[str, int], start: Start, names: Nameserver, origin: Origin, *, by_tcp: bool
) -> None:
    """Not by any address of this machine, a name or a redirect; if we speak by a unix socket neither."""
    url, port = own
    names.says[NAME] = [at("127.0.0.1", ttl_s=60)]
    origin.behaviour = o.redirect(f"http://127.0.0.1:{port}/")
    url = f"redis://localhost:{port}" if by_tcp else url
    worker = await start(redis_url=url, allow_net=EVERYWHERE, nameservers=names.address)
    hosts = ["127.0.0.1", "localhost", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", NAME]

    results = await worker.results([*(f"http://{host}:{port}/" for host in hosts), origin.url()])

    assert {(Outcome.FAILED, Reason.EGRESS_REFUSED, 1)} == {
        (result.outcome, result.reason, result.attempts) for result in results
    }


async def test_a_port_beside_our_own_redis_is_dialled(
    own: tuple[str, int], start: Start, origin: Origin
) -> None:
    """It is the one service that is shut off, not the machine."""
    worker = await start(redis_url=own[0], allow_net=EVERYWHERE)

    assert Outcome.STORED is (await worker.one(origin.url())).outcome


async def test_our_own_redis_is_at_all_that_its_name_has_led_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it led to before may still be it; and while the name is not found, what was found counts on."""
    said: list[Any] = [["10.0.0.7"], ["10.0.0.8", "fd00::8"], OSError("not found")]

    async def found(*_: Any, **__: Any) -> list[Any]:
        what = said.pop(0)
        if isinstance(what, OSError):
            raise what
        return [(0, 0, 0, "", (address, 6379)) for address in what]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found)
    redis = RedisAddresses("redis.example", 6379, refresh_s=0)
    where = [await redis.at(6379) for _ in range(3)]
    addresses = [[str(address) for address in sorted(at.addresses, key=str)] for at in where if at]

    assert [["10.0.0.7"], *[["10.0.0.7", "10.0.0.8", "fd00::8"]] * 2] == addresses
    assert await redis.at(80) is None
    assert not said


async def test_what_is_not_known_to_be_elsewhere_is_not_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis whose name has never been found may be anywhere at that port."""

    async def never(*_: Any, **__: Any) -> list[Any]:
        raise OSError("not found")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)

    with pytest.raises(UnresolvedError):
        await RedisAddresses("redis.example", 6379).at(6379)


@pytest.mark.parametrize(("address", "ours"), [("127.0.0.1", True), ("::1", True), ("192.0.2.1", False)])
def test_an_address_of_this_machine_is_told_without_a_packet(address: str, *, ours: bool) -> None:
    """By what Linux would call from."""
    assert is_own_address(ip_address(address)) is ours
