"""DNS lookups: their questions, their cache, their failures, and the addresses that are dialled."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from fetchfleet import Outcome, Reason
from fetchfleet.worker.errors import NameServerError, NameTimeoutError, NoSuchNameError
from fetchfleet.worker.http.net.dns import CHANNEL_S, Resolver
from fetchfleet.worker.http.net.guard import MAX_ADDRESSES
from tests.component.conftest import HOST, OTHER_HOST, Start
from tests.support.nameserver import (
    AAAA,
    NAME,
    NO_REPLY,
    NO_SUCH_NAME,
    SERVFAIL,
    Nameserver,
    addresses,
    cname_chain,
    dns_error,
    nameserver,
)
from tests.support.unreachable_port import unreachable_port
from tests.support.waiting import wait_until
from tools.origin import behaviours as o
from tools.origin.server import Origin

ADDRESS, OTHER_ADDRESS = "192.0.2.1", "192.0.2.2"


class Clock:
    """A clock that only the test advances."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Return the current time."""
        return self.now_s


@asynccontextmanager
async def resolving(*servers: str, now_s: Callable[[], float] | None = None) -> AsyncIterator[Resolver]:
    """Yield a resolver with these nameservers."""
    made = Resolver(servers, now_s) if now_s else Resolver(servers)
    try:
        yield made
    finally:
        await made.aclose()


async def test_a_name_resolves_to_addresses_of_both_families(names: Nameserver) -> None:
    """Duplicates are dropped, and aliases are followed."""
    names.replies[NAME] = [addresses(ADDRESS, "2001:db8::1", ADDRESS)]
    names.replies["alias.example"] = [
        cname_chain("alias.example", "b.example", "c.example", ends_at=(ADDRESS,))
    ]
    async with resolving(names.address) as resolver:
        assert {ADDRESS, "2001:db8::1"} == set(await resolver.addresses(NAME))
        assert [ADDRESS] == list(await resolver.addresses("alias.example"))


@pytest.mark.parametrize("literal", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"])
async def test_an_address_resolves_to_itself(names: Nameserver, literal: str) -> None:
    """No nameserver is queried."""
    async with resolving(names.address) as resolver:
        assert [literal] == list(await resolver.addresses(literal))
    assert not names.queries


async def test_localhost_resolves_without_a_nameserver(names: Nameserver) -> None:
    """RFC 6761 §6.3 requires this."""
    async with resolving(names.address) as resolver:
        assert "127.0.0.1" in await resolver.addresses("localhost")
    assert not names.queries


async def test_concurrent_lookups_send_one_question(names: Nameserver) -> None:
    """They share its response, even with a TTL of 0."""
    names.replies[NAME] = [addresses(ADDRESS)]
    async with resolving(names.address) as resolver:
        found = await asyncio.gather(*(resolver.addresses(NAME) for _ in range(50)))

    assert [(ADDRESS,)] * 50 == [tuple(addresses) for addresses in found]
    assert 1 == names.query_count()


async def test_a_cancelled_lookup_does_not_cancel_the_others(names: Nameserver) -> None:
    """The remaining lookup gets the addresses, and a later one finds them in the cache."""
    names.replies[NAME] = [addresses(ADDRESS, ttl_s=60)]
    async with resolving(names.address) as resolver:
        first, second, third = (asyncio.create_task(resolver.addresses(NAME)) for _ in range(3))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        second.cancel()
        found = await third
        later = await resolver.addresses(NAME)

    assert first.cancelled()
    assert second.cancelled()
    assert [ADDRESS] == list(found) == list(later)
    assert 1 == names.query_count()


@pytest.mark.parametrize(("ttl_s", "kept_s"), [(1, 1), (60, 60), (86_400, 300)])
async def test_addresses_are_cached_for_their_ttl_and_at_most_five_minutes(
    names: Nameserver, ttl_s: int, kept_s: int
) -> None:
    """After that the nameserver is queried again, whatever the resolver library has cached."""
    names.replies[NAME] = [addresses(ADDRESS, ttl_s=ttl_s), addresses(OTHER_ADDRESS, ttl_s=ttl_s)]
    clock = Clock()
    async with resolving(names.address, now_s=clock) as resolver:
        await resolver.addresses(NAME)
        clock.now_s += kept_s - 0.01
        before = await resolver.addresses(NAME)
        clock.now_s += CHANNEL_S
        after = await resolver.addresses(NAME)

    assert ([ADDRESS], [OTHER_ADDRESS]) == (list(before), list(after))
    assert 2 == names.query_count()


async def test_a_ttl_of_0_is_not_cached(names: Nameserver) -> None:
    """The next lookup queries the nameserver again."""
    names.replies[NAME] = [addresses(ADDRESS), addresses(OTHER_ADDRESS)]
    async with resolving(names.address) as resolver:
        found = [list(await resolver.addresses(NAME)) for _ in range(2)]

    assert [[ADDRESS], [OTHER_ADDRESS]] == found


async def test_a_name_that_is_created_is_found_seconds_later(names: Nameserver) -> None:
    """A missing name is cached for five seconds, whatever its zone and the resolver library say."""
    names.replies[NAME] = [NO_SUCH_NAME, addresses(ADDRESS)]
    clock = Clock()
    async with resolving(names.address, now_s=clock) as resolver:
        for _ in range(3):
            with pytest.raises(NoSuchNameError):
                await resolver.addresses(NAME)
        asked = names.query_count()
        clock.now_s += 5.01

        assert [ADDRESS] == list(await resolver.addresses(NAME))
    assert 1 == asked


async def test_a_nameserver_that_failed_is_queried_again_after_a_second(names: Nameserver) -> None:
    """Until then the failure is cached."""
    names.replies[NAME] = [dns_error(SERVFAIL)]
    clock = Clock()
    async with resolving(names.address, now_s=clock) as resolver:
        with pytest.raises(NameServerError):
            await resolver.addresses(NAME)
        names.replies[NAME] = [addresses(ADDRESS)]
        with pytest.raises(NameServerError):
            await resolver.addresses(NAME)
        clock.now_s += 1.01

        assert [ADDRESS] == list(await resolver.addresses(NAME))


async def test_an_unreachable_nameserver_is_a_nameserver_error() -> None:
    """No process listens at its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.53.2", 0))
        port = unused.getsockname()[1]
    async with resolving(f"127.0.53.2:{port}") as resolver:
        with pytest.raises(NameServerError):
            await resolver.addresses(NAME)


async def test_the_second_nameserver_is_queried_if_the_first_is_unreachable(names: Nameserver) -> None:
    """Nameservers are queried in their configured order."""
    names.replies[NAME] = [addresses(ADDRESS)]
    async with resolving("127.0.53.2:1", names.address) as resolver:
        assert [ADDRESS] == list(await resolver.addresses(NAME))


async def test_a_silent_nameserver_fails_the_lookup_at_the_time_limit(names: Nameserver) -> None:
    """The limit covers all tries of a lookup. The next lookup queries the nameserver again."""
    names.replies[NAME] = [NO_REPLY]
    async with resolving(names.address) as resolver:
        resolver.limit_s = 0.2
        with pytest.raises(NameTimeoutError):
            await resolver.addresses(NAME)
        names.replies[NAME] = [addresses(ADDRESS)]
        resolver.limit_s = 5.0

        assert [ADDRESS] == list(await resolver.addresses(NAME))


async def test_one_address_family_resolves_without_a_response_for_the_other(names: Nameserver) -> None:
    """Some nameservers do not respond to AAAA questions."""
    names.replies[NAME], names.unanswered = [addresses(ADDRESS)], {AAAA}
    async with resolving(names.address) as resolver:
        assert [ADDRESS] == list(await resolver.addresses(NAME))


async def test_a_pending_lookup_survives_the_renewal_of_the_dns_channel(names: Nameserver) -> None:
    """It keeps the channel by which its question was sent."""
    names.replies |= {NAME: [NO_REPLY], "b.example": [NO_SUCH_NAME], "c.example": [addresses(OTHER_ADDRESS)]}
    async with resolving(names.address) as resolver:
        slow = asyncio.create_task(resolver.addresses(NAME))
        await wait_until(names.query_count, "the question")
        with pytest.raises(NoSuchNameError):
            await resolver.addresses("b.example")
        await resolver.addresses("c.example")
        names.replies[NAME] = [addresses(ADDRESS)]

        assert [ADDRESS] == list(await slow)


async def test_only_the_first_few_of_a_thousand_addresses_are_dialled(
    origin: Origin, start: Start, names: Nameserver
) -> None:
    """They arrive over TCP. A live address beyond the limit is never reached; one within it is."""
    dead = [f"127.53.{number // 250}.{number % 250 + 1}" for number in range(1000)]
    names.replies |= {
        "last.example": [addresses(*dead, HOST)],
        "soon.example": [addresses(*dead[: MAX_ADDRESSES - 1], HOST)],
    }
    worker = await start(policy={"attempts": 1}, nameservers=names.address)
    last, soon = await worker.results(
        f"http://{name}:{origin.port}/" for name in ("last.example", "soon.example")
    )

    assert (last.outcome, last.reason) == (Outcome.FAILED, Reason.CONNECT)
    assert soon.outcome is Outcome.STORED
    assert 1 == origin.connections_opened


async def test_a_dead_ipv6_address_does_not_fail_a_fetch_if_ipv4_works(
    origin: Origin, start: Start, names: Nameserver
) -> None:
    """IPv6 refuses or is silent, so IPv4 is tried beside it (RFC 8305), within one attempt."""
    names.replies[NAME] = [addresses("::1", HOST)]
    worker = await start(policy={"attempts": 1}, nameservers=names.address, allow_net="127.0.0.0/8,::1")
    refused = await worker.one(f"http://{NAME}:{origin.port}/refused")
    await worker.runtime.services.pools.close(NAME)
    with unreachable_port("::1", origin.port):
        silent = await worker.one(f"http://{NAME}:{origin.port}/silent")

    assert [Outcome.STORED] * 2 == [refused.outcome, silent.outcome]


async def test_a_name_is_looked_up_again_after_a_failed_connection(
    origin: Origin, start: Start, names: Nameserver
) -> None:
    """The next attempt finds a host that has moved, whatever its TTL was."""
    names.replies[NAME] = [addresses(OTHER_HOST, ttl_s=300), addresses(HOST, ttl_s=300)]
    worker = await start(nameservers=names.address)
    result = await worker.one(f"http://{NAME}:{origin.port}/")

    assert (Outcome.STORED, 2, 2) == (result.outcome, result.attempts, names.query_count())


async def test_dns_names_that_are_not_valid_idna_are_fetched(
    origin: Origin, start: Start, names: Nameserver, engine: str
) -> None:
    """The name is resolved and sent in Host as the URL has it, also after a redirect."""
    there = o.redirect(lambda _: f"http://xn--i-7iq.ws:{origin.port}/")
    origin.behaviour = o.by_path({"/redirect": there}, otherwise=o.ok())
    hosts = ["xn--i-7iq.ws", "_foo.example.com", "-a--b-.example"]
    names.replies |= {host: [addresses(HOST)] for host in hosts}
    worker = await start(engine=engine, nameservers=names.address)
    urls = [f"http://{host}:{origin.port}/" for host in hosts]
    results = await worker.results([*urls, f"{urls[1]}redirect"])

    assert {Outcome.STORED} == {result.outcome for result in results}
    assert urls[0] == results[-1].final_url
    asked = {
        value for request in origin.requests for name, value in request.headers if name.lower() == "host"
    }
    assert {f"{host}:{origin.port}" for host in hosts} == asked


async def test_connections_share_cached_addresses(origin: Origin, start: Start, names: Nameserver) -> None:
    """Twenty connections need one question."""
    names.replies[NAME] = [addresses(HOST, ttl_s=300)]
    origin.behaviour = o.ok(b"ok", [("Connection", "close")])
    worker = await start(nameservers=names.address)
    results = await worker.results(f"http://{NAME}:{origin.port}/{number}" for number in range(20))

    assert {Outcome.STORED} == {result.outcome for result in results}
    assert (20, 1) == (origin.connections_opened, names.query_count())


async def test_closing_the_resolver_cancels_pending_lookups() -> None:
    """A worker that stops waits for no nameserver."""
    async with nameserver("127.0.53.3") as names:
        names.replies[NAME] = [NO_REPLY]
        async with resolving(names.address) as resolver:
            waiting = asyncio.create_task(resolver.addresses(NAME))
            await wait_until(names.query_count, "the question")
    await asyncio.wait([waiting])

    assert waiting.cancelled()
