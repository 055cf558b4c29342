"""Names become addresses: what is asked, how often, for how long it counts, and what goes wrong."""

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
from tests.support.deaf import deaf
from tests.support.nameserver import (
    AAAA,
    NAME,
    NO_SUCH_NAME,
    SERVFAIL,
    SILENCE,
    Nameserver,
    alias,
    at,
    fails,
    nameserver,
)
from tests.support.waiting import wait_until
from tools.origin import behaviours as o
from tools.origin.server import Origin

ADDRESS, OTHER_ADDRESS = "192.0.2.1", "192.0.2.2"


class Clock:
    """Time that stands still until the test moves it on."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """The time as it stands."""
        return self.now_s


@asynccontextmanager
async def asking(*servers: str, now_s: Callable[[], float] | None = None) -> AsyncIterator[Resolver]:
    """A resolver of those servers, for the length of a block."""
    made = Resolver(servers, now_s) if now_s else Resolver(servers)
    try:
        yield made
    finally:
        await made.aclose()


async def test_a_name_has_addresses_of_both_families(names: Nameserver) -> None:
    """Each once, also those behind an alias."""
    names.says[NAME] = [at(ADDRESS, "2001:db8::1", ADDRESS)]
    names.says["alias.example"] = [alias("alias.example", "b.example", "c.example", ends_at=(ADDRESS,))]
    async with asking(names.address) as resolver:
        assert {ADDRESS, "2001:db8::1"} == set(await resolver.addresses(NAME))
        assert [ADDRESS] == list(await resolver.addresses("alias.example"))


@pytest.mark.parametrize("literal", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"])
async def test_an_address_is_its_own(names: Nameserver, literal: str) -> None:
    """Nobody is asked."""
    async with asking(names.address) as resolver:
        assert [literal] == list(await resolver.addresses(literal))
    assert not names.questions


async def test_localhost_is_known_without_a_nameserver(names: Nameserver) -> None:
    """RFC 6761 §6.3."""
    async with asking(names.address) as resolver:
        assert "127.0.0.1" in await resolver.addresses("localhost")
    assert not names.questions


async def test_all_who_ask_at_once_ask_once(names: Nameserver) -> None:
    """The nameserver sees one question, also for a name that counts only now."""
    names.says[NAME] = [at(ADDRESS)]
    async with asking(names.address) as resolver:
        found = await asyncio.gather(*(resolver.addresses(NAME) for _ in range(50)))

    assert [(ADDRESS,)] * 50 == [tuple(addresses) for addresses in found]
    assert 1 == names.asked()


async def test_who_goes_away_takes_the_answer_from_nobody(names: Nameserver) -> None:
    """The others still hear it; and if all go, whoever comes later does not ask again."""
    names.says[NAME] = [at(ADDRESS, ttl_s=60)]
    async with asking(names.address) as resolver:
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
    assert 1 == names.asked()


@pytest.mark.parametrize(("ttl_s", "kept_s"), [(1, 1), (60, 60), (86_400, 300)])
async def test_an_answer_counts_for_its_ttl_and_at_most_for_five_minutes(
    names: Nameserver, ttl_s: int, kept_s: int
) -> None:
    """After that it is asked for anew, whatever the library below has kept."""
    names.says[NAME] = [at(ADDRESS, ttl_s=ttl_s), at(OTHER_ADDRESS, ttl_s=ttl_s)]
    clock = Clock()
    async with asking(names.address, now_s=clock) as resolver:
        await resolver.addresses(NAME)
        clock.now_s += kept_s - 0.01
        before = await resolver.addresses(NAME)
        clock.now_s += CHANNEL_S
        after = await resolver.addresses(NAME)

    assert ([ADDRESS], [OTHER_ADDRESS]) == (list(before), list(after))
    assert 2 == names.asked()


async def test_a_ttl_of_0_counts_only_now(names: Nameserver) -> None:
    """The next one asks."""
    names.says[NAME] = [at(ADDRESS), at(OTHER_ADDRESS)]
    async with asking(names.address) as resolver:
        found = [list(await resolver.addresses(NAME)) for _ in range(2)]

    assert [[ADDRESS], [OTHER_ADDRESS]] == found


async def test_a_name_that_comes_to_be_is_found_seconds_later(names: Nameserver) -> None:
    """Its absence counts for five seconds, whatever its zone says and the library below remembers."""
    names.says[NAME] = [NO_SUCH_NAME, at(ADDRESS)]
    clock = Clock()
    async with asking(names.address, now_s=clock) as resolver:
        for _ in range(3):
            with pytest.raises(NoSuchNameError):
                await resolver.addresses(NAME)
        asked = names.asked()
        clock.now_s += 5.01

        assert [ADDRESS] == list(await resolver.addresses(NAME))
    assert 1 == asked


async def test_a_nameserver_that_failed_is_asked_again_after_a_second(names: Nameserver) -> None:
    """It may well be better by then."""
    names.says[NAME] = [fails(SERVFAIL)]
    clock = Clock()
    async with asking(names.address, now_s=clock) as resolver:
        with pytest.raises(NameServerError):
            await resolver.addresses(NAME)
        names.says[NAME] = [at(ADDRESS)]
        with pytest.raises(NameServerError):
            await resolver.addresses(NAME)
        clock.now_s += 1.01

        assert [ADDRESS] == list(await resolver.addresses(NAME))


async def test_a_nameserver_that_is_not_there_has_failed() -> None:
    """Nobody listens at its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.53.2", 0))
        port = nobody.getsockname()[1]
    async with asking(f"127.0.53.2:{port}") as resolver:
        with pytest.raises(NameServerError):
            await resolver.addresses(NAME)


async def test_the_second_nameserver_is_asked_where_the_first_is_not_there(names: Nameserver) -> None:
    """In the order in which they are named."""
    names.says[NAME] = [at(ADDRESS)]
    async with asking("127.0.53.2:1", names.address) as resolver:
        assert [ADDRESS] == list(await resolver.addresses(NAME))


async def test_a_silent_nameserver_is_waited_for_no_longer_than_the_limit(names: Nameserver) -> None:
    """However often it is asked; and who comes next asks again."""
    names.says[NAME] = [SILENCE]
    async with asking(names.address) as resolver:
        resolver.limit_s = 0.2
        with pytest.raises(NameTimeoutError):
            await resolver.addresses(NAME)
        names.says[NAME] = [at(ADDRESS)]
        resolver.limit_s = 5.0

        assert [ADDRESS] == list(await resolver.addresses(NAME))


async def test_a_family_that_is_not_answered_for_costs_not_the_other(names: Nameserver) -> None:
    """Some nameservers know no AAAA and say nothing."""
    names.says[NAME], names.mute = [at(ADDRESS)], {AAAA}
    async with asking(names.address) as resolver:
        assert [ADDRESS] == list(await resolver.addresses(NAME))


async def test_what_is_under_way_is_not_lost_when_the_library_below_is_made_anew(names: Nameserver) -> None:
    """A question that waits for its answer keeps the channel that it was asked by."""
    names.says |= {NAME: [SILENCE], "b.example": [NO_SUCH_NAME], "c.example": [at(OTHER_ADDRESS)]}
    async with asking(names.address) as resolver:
        slow = asyncio.create_task(resolver.addresses(NAME))
        await wait_until(names.asked, "the question")
        with pytest.raises(NoSuchNameError):
            await resolver.addresses("b.example")
        await resolver.addresses("c.example")
        names.says[NAME] = [at(ADDRESS)]

        assert [ADDRESS] == list(await slow)


async def test_of_a_thousand_addresses_a_few_are_tried(
    origin: Origin, start: Start, names: Nameserver
) -> None:
    """They come over TCP; all are vetted, and the living one behind the dead ones is never reached."""
    dead = [f"127.53.{number // 250}.{number % 250 + 1}" for number in range(1000)]
    names.says |= {"last.example": [at(*dead, HOST)], "soon.example": [at(*dead[: MAX_ADDRESSES - 1], HOST)]}
    worker = await start(policy={"attempts": 1}, nameservers=names.address)
    last, soon = await worker.results(
        f"http://{name}:{origin.port}/" for name in ("last.example", "soon.example")
    )

    assert (last.outcome, last.reason) == (Outcome.FAILED, Reason.CONNECT)
    assert soon.outcome is Outcome.STORED
    assert 1 == origin.connections_opened


async def test_an_address_that_is_dead_costs_a_moment_while_another_lives(
    origin: Origin, start: Start, names: Nameserver
) -> None:
    """IPv6 refuses, or says nothing at all: IPv4 is tried beside it (RFC 8305), within one attempt."""
    names.says[NAME] = [at("::1", HOST)]
    worker = await start(policy={"attempts": 1}, nameservers=names.address, allow_net="127.0.0.0/8,::1")
    refused = await worker.one(f"http://{NAME}:{origin.port}/refused")
    await worker.runtime.services.pools.close(NAME)
    with deaf("::1", origin.port):
        silent = await worker.one(f"http://{NAME}:{origin.port}/silent")

    assert [Outcome.STORED] * 2 == [refused.outcome, silent.outcome]


async def test_a_name_that_led_nowhere_is_asked_for_anew(
    origin: Origin, start: Start, names: Nameserver
) -> None:
    """A host that has moved is found by the next attempt, whatever its TTL was."""
    names.says[NAME] = [at(OTHER_HOST, ttl_s=300), at(HOST, ttl_s=300)]
    worker = await start(nameservers=names.address)
    result = await worker.one(f"http://{NAME}:{origin.port}/")

    assert (Outcome.STORED, 2, 2) == (result.outcome, result.attempts, names.asked())


async def test_hosts_that_are_dns_names_but_no_international_ones_are_fetched(
    origin: Origin, start: Start, names: Nameserver, engine: str
) -> None:
    """The name is resolved and sent in Host as the URL has it, in a redirect as well."""
    there = o.redirect(lambda _: f"http://xn--i-7iq.ws:{origin.port}/")
    origin.behaviour = o.by_path({"/redirect": there}, otherwise=o.ok())
    hosts = ["xn--i-7iq.ws", "_foo.example.com", "-a--b-.example"]
    names.says |= {host: [at(HOST)] for host in hosts}
    worker = await start(engine=engine, nameservers=names.address)
    urls = [f"http://{host}:{origin.port}/" for host in hosts]
    results = await worker.results([*urls, f"{urls[1]}redirect"])

    assert {Outcome.STORED} == {result.outcome for result in results}
    assert urls[0] == results[-1].final_url
    asked = {
        value for request in origin.requests for name, value in request.headers if name.lower() == "host"
    }
    assert {f"{host}:{origin.port}" for host in hosts} == asked


async def test_connections_share_what_is_known_of_a_name(
    origin: Origin, start: Start, names: Nameserver
) -> None:
    """A connection each, one question."""
    names.says[NAME] = [at(HOST, ttl_s=300)]
    origin.behaviour = o.ok(b"ok", [("Connection", "close")])
    worker = await start(nameservers=names.address)
    results = await worker.results(f"http://{NAME}:{origin.port}/{number}" for number in range(20))

    assert {Outcome.STORED} == {result.outcome for result in results}
    assert (20, 1) == (origin.connections_opened, names.asked())


async def test_nothing_is_left_of_a_question_that_is_given_up() -> None:
    """A worker that stops waits for no nameserver."""
    async with nameserver("127.0.53.3") as names:
        names.says[NAME] = [SILENCE]
        async with asking(names.address) as resolver:
            waiting = asyncio.create_task(resolver.addresses(NAME))
            await wait_until(names.asked, "the question")
    await asyncio.wait([waiting])

    assert waiting.cancelled()
