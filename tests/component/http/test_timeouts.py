"""Timeouts: each wait of an exchange has its own bound and its own reason."""

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
    """Yield the URL of a host with a full accept queue: its kernel ignores further connections."""
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
    """Send half of a head, and stall."""
    await x.raw(LINE + b"X: y\r\n")
    await asyncio.Event().wait()


async def test_a_host_that_accepts_no_connection_fails_with_connect_timeout(start: Start) -> None:
    """No request was sent, so a POST is retried too."""
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
async def test_the_reason_of_a_stalled_head_depends_on_its_first_byte(
    origin: Origin, start: Start, answer: Behaviour, reason: Reason
) -> None:
    """The read timeout bounds both waits; only the reason differs."""
    worker = await start(policy={"attempts": 1, "timeout": replace(PATIENT, read_s=0.2)})
    origin.behaviour = answer

    assert (await worker.one(origin.url())).reason is reason


async def test_the_first_byte_timeout_on_a_reused_connection_ignores_earlier_responses(
    origin: Origin, start: Start
) -> None:
    """Bytes of the previous response do not turn it into a read timeout."""
    worker = await start(policy={"attempts": 1, "concurrency": 1, "timeout": replace(PATIENT, read_s=0.2)})
    origin.behaviour = o.by_path({"/": o.OK, "/held": o.silent})

    first, second = await worker.results([origin.url("/"), origin.url("/held")])

    assert (first.reason, second.reason) == (None, Reason.FIRST_BYTE_TIMEOUT)
    assert origin.connections_opened == 1


TRICKLES = {
    "headers": (endless(LINE, itertools.repeat(b"X: y\r\n"), 0.05), 1),
    "1xx": (endless(b"", itertools.repeat(EARLY), 0.05), 5),
    "a body": (o.slow(b"x", 0.05, 100_000), 1),
    "a body without an end": (endless(LINE + b"\r\n", itertools.repeat(b"x"), 0.05), 5),
    "nothing": (o.silent, 1),
}


@pytest.mark.parametrize(("answer", "attempts"), TRICKLES.values(), ids=TRICKLES.keys())
async def test_the_deadline_ends_a_fetch_whatever_its_host_sends(
    origin: Origin, start: Start, answer: Behaviour, attempts: int
) -> None:
    """The reason is `deadline` on the last attempt and on an earlier one. The policy allows a minute."""
    worker = await start(policy={"attempts": attempts, "timeout": PATIENT})
    origin.behaviour = answer

    result = await worker.one(origin.url(), deadline_s=1.0)

    assert (result.outcome, result.reason, result.attempts) == (Outcome.FAILED, Reason.DEADLINE, 1)
    assert not worker.files() | worker.parts()


async def test_a_post_cut_off_by_the_deadline_is_not_repeated(origin: Origin, start: Start) -> None:
    """The reason is `deadline`, as for any other method."""
    worker = await start(policy={"timeout": PATIENT})
    origin.behaviour = o.silent

    result = await worker.one(origin.url(), method="POST", body="x", deadline_s=1.0)

    assert (result.reason, len(origin.requests)) == (Reason.DEADLINE, 1)


async def test_a_fetch_that_waits_for_a_slot_of_the_worker_ends_at_its_deadline(
    origin: Origin, other: Origin, start: Start
) -> None:
    """The only slot stays taken for longer. The fetches queued behind it in its lane end too."""
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


async def test_a_robots_txt_that_trickles_costs_no_more_than_the_deadline(
    origin: Origin, start: Start
) -> None:
    """The fetch that requested it and the fetches that wait for it all end with `deadline`."""
    worker = await start(policy={"robots": "obey", "timeout": PATIENT})
    origin.behaviour = o.slow(b"x", 0.05, 100_000)

    async with asyncio.timeout(20):
        results = await worker.results([{"url": origin.url(f"/{n}"), "deadline_s": 1} for n in range(3)])

    assert {result.reason for result in results} == {Reason.DEADLINE}
    assert {seen.target for seen in origin.requests} == {"/robots.txt"}
