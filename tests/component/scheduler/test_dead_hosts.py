"""Dead hosts: given up after `give_up_s`, or after `give_up_dns_s` if the name does not exist."""

import re

from fetchfleet import Outcome, Reason
from tests.component.conftest import OTHER_HOST, Lines, Start
from tests.support.nameserver import NAME, NO_SUCH_NAME, Nameserver
from tests.support.waiting import wait_until
from tools.origin import behaviours as o
from tools.origin.server import Origin

WORDS = re.compile(r"no usable response for \d+ s; last: (read|write|connect), .+")
POLICY = {"breaker_failures": 3, "breaker_reset_s": 0.2, "breaker_cap_s": 0.2, "attempts": 100}


async def test_a_host_whose_name_does_not_exist_is_given_up_sooner(
    other: Origin, start: Start, names: Nameserver
) -> None:
    """Few queries are sent meanwhile. A host that resets connections has longer."""
    policy = {**POLICY, "give_up_dns_s": 0.5, "give_up_s": 3600}
    worker = await start(policy=policy, nameservers=names.address)
    names.replies[NAME], other.behaviour = [NO_SUCH_NAME], o.reset
    mute = await worker.submit([other.url(f"/{n}") for n in range(20)])

    results = await worker.results([f"http://{NAME}/{n}" for n in range(200)])

    assert {(Outcome.FAILED, Reason.HOST_DEAD)} == {(result.outcome, result.reason) for result in results}
    assert all("; last: dns_nxdomain" in (result.note or "") for result in results)
    assert 1 <= names.query_count() <= 20
    assert (await mute.counts()).done == 0


async def test_later_fetches_of_a_dead_host_send_one_probe(other: Origin, start: Start) -> None:
    """No request is sent before the probe is due. If it fails, the other fetches end too."""
    worker = await start(policy={**POLICY, "give_up_s": 0.3})
    other.behaviour = o.reset
    await worker.results([other.url(f"/{n}") for n in range(20)])
    seen = len(other.requests)

    results = await worker.results([other.url(f"/later/{n}") for n in range(50)])

    assert {Reason.HOST_DEAD} == {result.reason for result in results}
    assert seen + 1 == len(other.requests)


async def test_a_host_that_recovers_in_time_loses_no_fetch(other: Origin, start: Start) -> None:
    """One good response closes the breaker."""
    worker = await start(policy={**POLICY, "breaker_failures": 1, "concurrency": 1})
    other.behaviour = o.reset
    batch = await worker.submit([other.url(f"/{n}") for n in range(8)])
    await wait_until(lambda: len(other.requests) >= 3, "two probes")
    other.behaviour = o.OK
    results = [result async for result in batch.results()]

    assert {Outcome.STORED} == {result.outcome for result in results}
    assert {OTHER_HOST} == {result.url.split("/")[2].split(":")[0] for result in results}


async def test_each_fetch_of_a_dead_host_has_the_words_of_the_failure(
    other: Origin, start: Start, lines: Lines
) -> None:
    """Result, dead letter and log line say for how long, and what failed last, also for a retried fetch."""
    worker = await start(policy={**POLICY, "give_up_s": 0.3})
    other.behaviour = o.reset

    results = await worker.results([other.url(f"/{n}") for n in range(20)])
    again = await worker.results([other.url("/again")])
    letters = [letter async for letter in worker.fleet.dead.iter()]
    logged = [line["note"] for line in lines if line["event"] == "fetch.finished"]

    notes = [result.note for result in [*results, *again]]
    assert [note for note in notes if not note or not WORDS.fullmatch(note)] == []
    assert sorted(map(str, notes)) == sorted(letter.note for letter in letters) == sorted(logged)
