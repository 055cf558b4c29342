"""Every wait of an exchange ends, each by its own bound and with its own reason."""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from msgspec.structs import replace

from fetchfleet import Outcome, Reason
from fetchfleet.worker.policy.model import Timeouts
from tests.component.body.test_trickles import EARLY, LINE, endless
from tests.component.conftest import Start, on_both_engines
from tests.support.waiting import wait_until
from tools.one_worker import results_of
from tools.origin import behaviours as o
from tools.origin.server import Behaviour, Exchange, Origin

pytestmark = on_both_engines

PATIENT = Timeouts(connect_s=60, read_s=60, write_s=60, pool_s=60, total_s=60)
HOST = "127.0.5.3"


@contextmanager
def unreachable() -> Iterator[str]:
    """The URL of a host whose kernel takes no more connections: what is sent to it is not answered."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind((HOST, 0))
        full.listen(0)
        for _ in range(3):
            line = stack.enter_context(socket.socket())
            line.settimeout(0)
            line.connect_ex(full.getsockname())
        yield f"http://{HOST}:{full.getsockname()[1]}/"


async def stalled(x: Exchange) -> None:
    """Says half of a head, and no more."""
    await x.raw(LINE + b"X: y\r\n")
    await asyncio.Event().wait()


async def test_a_host_that_takes_no_connection_ends_by_the_connect_timeout(start: Start) -> None:
    """Nothing was sent, so a POST is tried again too."""
    worker = await start(policy={"attempts": 2, "timeout": replace(PATIENT, connect_s=0.2)})
    with unreachable() as url:
        result = await worker.one(url, method="POST", body="x")

    assert (result.outcome, result.reason, result.attempts) == (Outcome.FAILED, Reason.CONNECT_TIMEOUT, 2)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (o.silent, Reason.FIRST_BYTE_TIMEOUT),
        (stalled, Reason.READ_TIMEOUT),
        (endless(EARLY, iter([b""]), 3600), Reason.READ_TIMEOUT),
    ],
    ids=["no byte", "half a head", "an interim head"],
)
async def test_a_head_that_stalls_says_whether_it_had_begun(
    origin: Origin, start: Start, answer: Behaviour, reason: Reason
) -> None:
    """The first byte has as long as any other; only the reason differs."""
    worker = await start(policy={"attempts": 1, "timeout": replace(PATIENT, read_s=0.2)})
    origin.behaviour = answer

    assert (await worker.one(origin.url())).reason is reason


async def test_on_a_connection_that_is_used_again_the_first_byte_is_that_of_its_own_answer(
    origin: Origin, start: Start
) -> None:
    """What the last answer brought does not count."""
    worker = await start(policy={"attempts": 1, "concurrency": 1, "timeout": replace(PATIENT, read_s=0.2)})
    origin.behaviour = o.by_path({"/": o.OK, "/held": o.silent})

    first, second = await worker.results([origin.url("/"), origin.url("/held")])

    assert (first.reason, second.reason) == (None, Reason.FIRST_BYTE_TIMEOUT)
    assert origin.connections_opened == 1


DRIPS = {
    "headers": (endless(LINE, itertools.repeat(b"X: y\r\n"), 0.05), 1),
    "1xx": (endless(b"", itertools.repeat(EARLY), 0.05), 5),
    "a body": (o.slow(b"x", 0.05, 100_000), 1),
    "a body without an end": (endless(LINE + b"\r\n", itertools.repeat(b"x"), 0.05), 5),
    "nothing": (o.silent, 1),
}


@pytest.mark.parametrize(("answer", "attempts"), DRIPS.values(), ids=DRIPS.keys())
async def test_whatever_a_host_does_the_deadline_ends_it(
    origin: Origin, start: Start, answer: Behaviour, attempts: int
) -> None:
    """As `deadline`, be it the last attempt or not, though the policy would allow a minute."""
    worker = await start(policy={"attempts": attempts, "timeout": PATIENT})
    origin.behaviour = answer

    result = await worker.one(origin.url(), deadline_s=1.0)

    assert (result.outcome, result.reason, result.attempts) == (Outcome.FAILED, Reason.DEADLINE, 1)
    assert not worker.files() | worker.parts()


async def test_a_post_that_the_deadline_cuts_off_is_not_sent_again(origin: Origin, start: Start) -> None:
    """It ends as `deadline` like any other."""
    worker = await start(policy={"timeout": PATIENT})
    origin.behaviour = o.silent

    result = await worker.one(origin.url(), method="POST", body="x", deadline_s=1.0)

    assert (result.reason, len(origin.requests)) == (Reason.DEADLINE, 1)


async def test_who_waits_for_a_slot_of_the_worker_waits_until_its_deadline(
    origin: Origin, other: Origin, start: Start
) -> None:
    """Though all slots are taken for longer than that, it ends; so does what waits behind it."""
    may_end = asyncio.Event()
    origin.behaviour = o.held(may_end)
    worker = await start(max_in_flight=1, policy={"concurrency": 1})
    holding = await worker.submit([origin.url()])
    await wait_until(lambda: origin.requests, "the only slot to be taken")

    behind = await worker.submit([{"url": other.url(f"/{n}"), "deadline_s": 1} for n in range(3)])
    async with asyncio.timeout(20):
        reasons = {result.reason async for result in behind.results()}
    may_end.set()

    assert reasons == {Reason.DEADLINE}
    assert [result.outcome for result in await results_of(holding)] == [Outcome.STORED]
    assert not other.requests


async def test_a_robots_txt_that_drips_costs_no_more_than_the_deadline(origin: Origin, start: Start) -> None:
    """The fetch in whose place it is asked for ends like those that wait for the answer."""
    worker = await start(policy={"robots": "obey", "timeout": PATIENT})
    origin.behaviour = o.slow(b"x", 0.05, 100_000)

    async with asyncio.timeout(20):
        results = await worker.results([{"url": origin.url(f"/{n}"), "deadline_s": 1} for n in range(3)])

    assert {result.reason for result in results} == {Reason.DEADLINE}
    assert {seen.target for seen in origin.requests} == {"/robots.txt"}
