"""What becomes of a file that stands where a body is to go."""

import asyncio

import pytest

from fetchfleet import Outcome, Reason
from tests.component.conftest import Start
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Origin

OLD = b"what was there"


async def test_a_file_gives_way_unless_something_else_is_said(origin: Origin, worker: OneWorker) -> None:
    """Whoever reads at the name finds the old body or the new one."""
    (worker.out / "a").write_bytes(OLD)
    with (worker.out / "a").open("rb") as reader:
        result = await worker.one(origin.url(), dest="a")

        assert (result.outcome, worker.body(result)) == (Outcome.STORED, b"ok")
        assert reader.read() == OLD


async def test_skip_asks_for_nothing_and_names_what_is_there(origin: Origin, worker: OneWorker) -> None:
    """The fetch ends as `unchanged`, with path and bytes of the file, and no attempt is counted."""
    (worker.out / "folder").mkdir()
    (worker.out / "folder/a").write_bytes(OLD)

    result = await worker.one(origin.url(), dest="folder/a", if_exists="skip")

    assert (result.outcome, result.reason, result.stale) == (Outcome.UNCHANGED, None, False)
    assert (result.path, result.bytes, result.sha256) == ("folder/a", len(OLD), None)
    assert (result.status, result.final_url, result.attempts) == (None, None, 0)
    assert (origin.requests, worker.body(result)) == ([], OLD)


async def test_fail_asks_for_nothing_and_says_exists(origin: Origin, worker: OneWorker) -> None:
    """What is there stays."""
    (worker.out / "a").write_bytes(OLD)

    result = await worker.one(origin.url(), dest="a", if_exists="fail")

    assert (result.outcome, result.reason, result.path) == (Outcome.FAILED, Reason.EXISTS, None)
    assert (origin.requests, result.attempts) == ([], 0)
    assert (worker.out / "a").read_bytes() == OLD


@pytest.mark.parametrize("what", ["skip", "fail"])
async def test_where_nothing_is_the_body_goes(origin: Origin, worker: OneWorker, what: str) -> None:
    """Under its one name: the part is gone."""
    result = await worker.one(origin.url(), dest="folder/a", if_exists=what)

    assert (result.outcome, worker.body(result)) == (Outcome.STORED, b"ok")
    assert (worker.out / "folder/a").stat().st_nlink == 1
    assert not worker.parts()


@pytest.mark.parametrize(
    ("what", "outcome", "reason", "path"),
    [
        ("skip", Outcome.UNCHANGED, None, "a"),
        ("fail", Outcome.FAILED, Reason.EXISTS, None),
        ("replace", Outcome.STORED, None, "a"),
    ],
)
async def test_a_file_that_appears_meanwhile_counts(
    origin: Origin, worker: OneWorker, what: str, outcome: Outcome, reason: Reason | None, path: str | None
) -> None:
    """Between the request and the end of the body somebody else has put one there."""
    may_end = asyncio.Event()
    origin.behaviour = o.held(may_end)
    batch = await worker.submit([{"url": origin.url(), "dest": "a", "if_exists": what}])
    await wait_until(lambda: origin.requests, "the request")
    (worker.out / "a").write_bytes(OLD)
    may_end.set()

    [result] = [result async for result in batch.results()]

    assert (result.outcome, result.reason, result.path) == (outcome, reason, path)
    assert (result.status, result.attempts) == (200, 1)
    assert (worker.out / "a").read_bytes() == (b"ok" if what == "replace" else OLD)
    assert not worker.parts()


async def test_of_many_that_want_one_name_one_has_it(origin: Origin, worker: OneWorker) -> None:
    """However they race, each other one is told that the name is taken."""
    fetches = [{"url": origin.url(f"/{n}"), "dest": "a", "if_exists": "fail"} for n in range(20)]
    origin.behaviour = o.ok(lambda target: target.encode())

    results = await worker.results(fetches)

    [stored] = [result for result in results if result.outcome is Outcome.STORED]
    assert {Reason.EXISTS} == {result.reason for result in results if result is not stored}
    assert (worker.out / "a").read_bytes() == stored.url[stored.url.rindex("/") :].encode()
    assert not worker.parts()


async def test_what_is_skipped_takes_nothing_from_the_hosts_pace(origin: Origin, start: Start) -> None:
    """A long list of which most is there is through at once."""
    worker = await start(policy={"rate_per_s": 0.01})
    for number in range(50):
        (worker.out / str(number)).write_bytes(OLD)
    fetches = [{"url": origin.url(), "dest": str(n), "if_exists": "skip"} for n in range(51)]

    results = await worker.results(fetches)

    assert [result.outcome for result in results] == [Outcome.UNCHANGED] * 50 + [Outcome.STORED]
    assert len(origin.requests) == 1
