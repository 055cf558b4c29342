"""Nothing is dialled that the operator did not allow, by whichever way a fetch gets there."""

import socket

import pytest

from jobs import Outcome, Reason, Result
from tests.shell.conftest import HOST, OTHER_HOST, Start
from tests.support import origin as o
from tests.support.origin import Origin
from tests.support.resolver import NAME, Resolver


def port_of(origin: Origin) -> str:
    """The port, as text."""
    return origin.url().split(":")[2].rstrip("/")


def was_refused(result: Result) -> bool:
    """Refused by the egress rule, for good."""
    return (result.outcome, result.reason, result.attempts) == (Outcome.FAILED, Reason.EGRESS_REFUSED, 1)


async def test_loopback_is_refused_unless_allowed(origin: Origin, start: Start) -> None:
    """Out of the box a worker dials public addresses alone; the origin sees no connection."""
    worker = await start(allow_net="")

    assert was_refused(await worker.one(origin.url()))
    assert origin.connections_opened == 0


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "[::1]", "[::ffff:127.0.0.1]"])
async def test_no_spelling_of_loopback_gets_through(start: Start, host: str) -> None:
    """A name and a mapped address are the same address in the end."""
    async with Origin.serving("127.0.0.1", o.OK) as origin:
        worker = await start(allow_net="")
        result = await worker.one(f"http://{host}:{port_of(origin)}/")

    assert was_refused(result)
    assert origin.connections_opened == 0


async def test_a_redirect_is_vetted_like_a_first_request(origin: Origin, other: Origin, start: Start) -> None:
    """An allowed host cannot send a fetch to one that is refused."""
    worker = await start(allow_net=f"{HOST}/32")
    origin.behaviour = o.redirect(other.url)

    result = await worker.one(origin.url("/a"))

    assert was_refused(result)
    assert result.final_url == other.url("/a")
    assert (origin.connections_opened, other.connections_opened) == (1, 0)


async def test_one_bad_address_refuses_the_name(origin: Origin, start: Start, resolver: Resolver) -> None:
    """A name with mixed answers is trusted for none of them, wherever the bad one stands."""
    worker = await start(allow_net=f"{HOST}/32")
    resolver.answers = [[HOST, OTHER_HOST], [OTHER_HOST, HOST], [*[HOST] * 20, "10.0.0.1"]]
    url = f"http://{NAME}:{port_of(origin)}/"

    results = [await worker.one(url) for _ in range(3)]

    assert all(map(was_refused, results))
    assert origin.connections_opened == 0


async def test_the_address_that_was_vetted_is_the_one_dialled(
    origin: Origin, other: Origin, start: Start, resolver: Resolver
) -> None:
    """A name is resolved once a connection: what it is changed to afterwards is not asked."""
    worker = await start(allow_net=f"{HOST}/32", policy={"concurrency": 1})
    resolver.answers = [[HOST], [OTHER_HOST]]
    url = f"http://{NAME}:{port_of(origin)}/"

    results = await worker.results([url] * 5)

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert (resolver.asked, origin.connections_opened, other.connections_opened) == (1, 1, 0)
    assert Origin.header(origin.requests[0], "Host") == f"{NAME}:{port_of(origin)}"


async def test_a_name_that_changes_is_vetted_again(origin: Origin, start: Start, resolver: Resolver) -> None:
    """The next connection asks anew, and believes no more than the first."""
    worker = await start(allow_net=f"{HOST}/32", policy={"concurrency": 1})
    resolver.answers = [[HOST], [OTHER_HOST]]
    origin.behaviour = o.ok(b"ok", [("Connection", "close")])
    url = f"http://{NAME}:{port_of(origin)}/"

    first, second = await worker.results([url] * 2)

    assert first.outcome is Outcome.STORED
    assert was_refused(second)
    assert origin.connections_opened == 1


async def test_the_next_address_is_tried_when_one_refuses(
    origin: Origin, start: Start, resolver: Resolver
) -> None:
    """A dead address of a name does not hide the living one."""
    worker = await start()
    resolver.answers = [[OTHER_HOST, HOST]]

    result = await worker.one(f"http://{NAME}:{port_of(origin)}/")

    assert (result.outcome, result.attempts) == (Outcome.STORED, 1)


@pytest.mark.parametrize(
    ("error", "reason"), [(socket.EAI_NONAME, Reason.DNS_NXDOMAIN), (socket.EAI_AGAIN, Reason.DNS)]
)
async def test_a_name_without_an_address_is_tried_again(
    start: Start, resolver: Resolver, error: int, reason: Reason
) -> None:
    """The resolver may know it later; the reason says whether there is no such name or no telling."""
    worker = await start(policy={"attempts": 3})
    resolver.answers, resolver.error = [[]], socket.gaierror(error, "nothing")

    result = await worker.one(f"http://{NAME}/")

    assert (result.reason, result.attempts, resolver.asked) == (reason, 3, 3)
