"""Egress rules: no route leads a fetch to an address that the operator did not allow."""

import pytest

from fetchfleet import Outcome, Reason, Result
from fetchfleet.worker.errors import EgressRefusedError
from fetchfleet.worker.http.connection_stats import ConnectionStats
from fetchfleet.worker.http.net.dns import Resolver
from fetchfleet.worker.http.net.guard import GuardedNetwork
from fetchfleet.worker.http.net.pool import LanePools
from fetchfleet.worker.http.net.redis_guard import RedisAddresses
from fetchfleet.worker.http.net.tls_contexts import TlsContexts
from fetchfleet.worker.policy.egress import Egress
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import LanePolicy, Timeouts
from tests.component.conftest import HOST, OTHER_HOST, Start, on_both_engines
from tests.support.nameserver import (
    FORMERR,
    NAME,
    NO_REPLY,
    NO_SUCH_NAME,
    REFUSED,
    SERVFAIL,
    DnsReply,
    Nameserver,
    addresses,
    cname_chain,
    dns_error,
)
from tools.origin import behaviours as o
from tools.origin.server import Origin

pytestmark = on_both_engines


def was_refused(result: Result) -> bool:
    """Return whether the egress rule refused the fetch, without a retry."""
    return (result.outcome, result.reason, result.attempts) == (Outcome.FAILED, Reason.EGRESS_REFUSED, 1)


async def test_loopback_is_refused_unless_allowed(origin: Origin, start: Start) -> None:
    """By default a worker dials public addresses only; the origin sees no connection."""
    worker = await start(allow_net="")

    assert was_refused(await worker.one(origin.url()))
    assert origin.connections_opened == 0


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "[::1]", "[::ffff:127.0.0.1]"])
async def test_no_spelling_of_loopback_is_dialled(start: Start, host: str) -> None:
    """The rule applies to the resolved address, also if it is an IPv4-mapped one."""
    async with Origin.serving("127.0.0.1", o.OK) as origin:
        worker = await start(allow_net="")
        result = await worker.one(f"http://{host}:{origin.port}/")

    assert was_refused(result)
    assert origin.connections_opened == 0


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("metadata.google.internal", "169.254.169.254"),
        ("wire.azure.example", "168.63.129.16"),
        ("six.example", "fd00:ec2::254"),
        ("translated.example", "64:ff9b::a9fe:a9fe"),
        ("mapped.example", "::ffff:10.0.0.1"),
    ],
)
async def test_a_name_is_vetted_by_the_address_it_resolves_to(
    start: Start, names: Nameserver, name: str, address: str
) -> None:
    """The rule has no list of names."""
    worker = await start(allow_net="", nameservers=names.address)
    names.replies[name] = [addresses(address)]

    assert was_refused(await worker.one(f"http://{name}/"))


async def test_a_denied_address_is_refused_inside_an_allowed_network(
    origin: Origin, other: Origin, start: Start
) -> None:
    """The rest of the allowed network is dialled."""
    worker = await start(allow_net="127.0.0.0/8", deny_net=f"{OTHER_HOST}/32")

    assert was_refused(await worker.one(other.url()))
    assert (await worker.one(origin.url())).outcome is Outcome.STORED
    assert other.connections_opened == 0


async def test_cached_addresses_are_vetted_for_each_connection(names: Nameserver) -> None:
    """Addresses are cached, verdicts are not. A changed policy of the lane applies at once."""
    names.replies[NAME] = [addresses("8.8.8.8", ttl_s=300)]
    network = GuardedNetwork(Egress(), Resolver([names.address]), RedisAddresses("127.0.0.1", 6379))
    pools = LanePools(network, TlsContexts(Policy()), ConnectionStats())
    pools.open(NAME, NAME, LanePolicy())
    try:
        lane = pools._pools[NAME].dialler
        assert list(await network.vetted_addresses(NAME, 443, lane.ports)) == ["8.8.8.8"]
        with pytest.raises(EgressRefusedError, match=r"port 8080 .*`ports`"):
            await network.vetted_addresses(NAME, 8080, lane.ports)
        pools.apply_policy(NAME, LanePolicy(ports=(8080,)))
        assert list(await network.vetted_addresses(NAME, 8080, lane.ports)) == ["8.8.8.8"]
        with pytest.raises(EgressRefusedError, match="port 443"):
            await network.vetted_addresses(NAME, 443, lane.ports)
    finally:
        await pools.aclose()
    assert names.query_count() == 1


async def test_a_redirect_is_vetted_like_a_first_request(origin: Origin, other: Origin, start: Start) -> None:
    """An allowed host cannot redirect a fetch to a refused one."""
    worker = await start(allow_net=f"{HOST}/32")
    origin.behaviour = o.redirect(other.url)

    result = await worker.one(origin.url("/a"))

    assert was_refused(result)
    assert result.final_url == other.url("/a")
    assert (origin.connections_opened, other.connections_opened) == (1, 0)


async def test_one_refused_address_refuses_the_name(origin: Origin, start: Start, names: Nameserver) -> None:
    """Every address of a name is vetted, at any position in the DNS response."""
    worker = await start(allow_net=f"{HOST}/32", nameservers=names.address)
    names.replies[NAME] = [
        addresses(HOST, OTHER_HOST),
        addresses(OTHER_HOST, HOST),
        addresses(*[HOST] * 20, "10.0.0.1"),
    ]
    url = f"http://{NAME}:{origin.port}/"

    results = [await worker.one(url) for _ in range(3)]

    assert all(map(was_refused, results))
    assert origin.connections_opened == 0


async def test_the_worker_dials_the_address_that_it_vetted(
    origin: Origin, other: Origin, start: Start, names: Nameserver
) -> None:
    """A name is resolved once for each connection, so a later DNS change does not affect it."""
    worker = await start(allow_net=f"{HOST}/32", policy={"concurrency": 1}, nameservers=names.address)
    names.replies[NAME] = [addresses(HOST), addresses(OTHER_HOST)]
    url = f"http://{NAME}:{origin.port}/"

    results = await worker.results([url] * 5)

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert (names.query_count(), origin.connections_opened, other.connections_opened) == (1, 1, 0)
    assert Origin.header(origin.requests[0], "Host") == f"{NAME}:{origin.port}"


async def test_a_name_that_changes_is_vetted_again(origin: Origin, start: Start, names: Nameserver) -> None:
    """With a TTL of 0, each new connection resolves the name and vets its addresses."""
    worker = await start(allow_net=f"{HOST}/32", policy={"concurrency": 1}, nameservers=names.address)
    names.replies[NAME] = [addresses(HOST), addresses(OTHER_HOST)]
    origin.behaviour = o.ok(b"ok", [("Connection", "close")])
    url = f"http://{NAME}:{origin.port}/"

    first, second = await worker.results([url] * 2)

    assert first.outcome is Outcome.STORED
    assert was_refused(second)
    assert origin.connections_opened == 1


async def test_the_next_address_is_tried_when_one_refuses_connections(
    origin: Origin, start: Start, names: Nameserver
) -> None:
    """Both addresses are tried within one attempt."""
    worker = await start(nameservers=names.address)
    names.replies[NAME] = [addresses(OTHER_HOST, HOST)]

    result = await worker.one(f"http://{NAME}:{origin.port}/")

    assert (result.outcome, result.attempts) == (Outcome.STORED, 1)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (NO_SUCH_NAME, Reason.DNS_NXDOMAIN),
        (DnsReply(), Reason.DNS_NXDOMAIN),
        (cname_chain(NAME, "other.example", NAME), Reason.DNS_NXDOMAIN),
        (dns_error(SERVFAIL), Reason.DNS_SERVFAIL),
        (dns_error(REFUSED), Reason.DNS_SERVFAIL),
        (dns_error(FORMERR), Reason.DNS_SERVFAIL),
        (NO_REPLY, Reason.DNS_TIMEOUT),
    ],
)
async def test_a_name_that_does_not_resolve_is_retried(
    start: Start, names: Nameserver, reply: DnsReply, reason: Reason
) -> None:
    """The reason distinguishes a missing name, a failing nameserver and a timeout."""
    hasty = {"connect_s": 0.2, "read_s": 1, "write_s": 1, "pool_s": 1, "total_s": 5}
    policy = {"attempts": 3, "timeout": Timeouts(**hasty)}
    worker = await start(policy=policy, nameservers=names.address)
    names.replies[NAME] = [reply]

    result = await worker.one(f"http://{NAME}/")

    assert (result.reason, result.attempts) == (reason, 3)
    assert names.query_count() >= 1
