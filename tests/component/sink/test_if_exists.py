"""`if_exists`: a file that is already at the `dest` of a fetch."""

import asyncio

import pytest

from fetchfleet import Outcome, Reason
from tests.component.conftest import Start
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Origin

OLD = b"the old body"


async def test_a_file_at_the_dest_is_replaced_by_default(origin: Origin, worker: OneWorker) -> None:
    """A reader that has the old file open still reads the old body."""
    (worker.out / "a").write_bytes(OLD)
    with (worker.out / "a").open("rb") as reader:
        result = await worker.one(origin.url(), dest="a")

        assert (result.outcome, worker.body(result)) == (Outcome.STORED, b"ok")
        assert reader.read() == OLD


async def test_skip_sends_no_request_and_names_the_existing_file(origin: Origin, worker: OneWorker) -> None:
    """The fetch ends as `unchanged` with path and size of the file, and counts no attempt."""
    (worker.out / "folder").mkdir()
    (worker.out / "folder/a").write_bytes(OLD)

    result = await worker.one(origin.url(), dest="folder/a", if_exists="skip")

    assert (result.outcome, result.reason, result.stale) == (Outcome.UNCHANGED, None, False)
    assert (result.path, result.bytes, result.sha256) == ("folder/a", len(OLD), None)
    assert (result.status, result.final_url, result.attempts) == (None, None, 0)
    assert (origin.requests, worker.body(result)) == ([], OLD)


async def test_fail_sends_no_request_and_ends_as_exists(origin: Origin, worker: OneWorker) -> None:
    """The existing file stays."""
    (worker.out / "a").write_bytes(OLD)

    result = await worker.one(origin.url(), dest="a", if_exists="fail")

    assert (result.outcome, result.reason, result.path) == (Outcome.FAILED, Reason.EXISTS, None)
    assert (origin.requests, result.attempts) == ([], 0)
    assert (worker.out / "a").read_bytes() == OLD


@pytest.mark.parametrize("if_exists", ["skip", "fail"])
async def test_skip_and_fail_store_the_body_if_no_file_exists(
    origin: Origin, worker: OneWorker, if_exists: str
) -> None:
    """The body has one name: its partial file is gone."""
    result = await worker.one(origin.url(), dest="folder/a", if_exists=if_exists)

    assert (result.outcome, worker.body(result)) == (Outcome.STORED, b"ok")
    assert (worker.out / "folder/a").stat().st_nlink == 1
    assert not worker.parts()


@pytest.mark.parametrize(
    ("if_exists", "outcome", "reason", "path"),
    [
        ("skip", Outcome.UNCHANGED, None, "a"),
        ("fail", Outcome.FAILED, Reason.EXISTS, None),
        ("replace", Outcome.STORED, None, "a"),
    ],
)
async def test_if_exists_applies_to_a_file_that_appears_during_the_fetch(
    origin: Origin,
    worker: OneWorker,
    if_exists: str,
    outcome: Outcome,
    reason: Reason | None,
    path: str | None,
) -> None:
    """Another program creates the file between the request and the end of the body."""
    may_end = asyncio.Event()
    origin.behaviour = o.held(may_end)
    batch = await worker.submit([{"url": origin.url(), "dest": "a", "if_exists": if_exists}])
    await wait_until(lambda: origin.requests, "the request")
    (worker.out / "a").write_bytes(OLD)
    may_end.set()

    [result] = [result async for result in batch.results()]

    assert (result.outcome, result.reason, result.path) == (outcome, reason, path)
    assert (result.status, result.attempts) == (200, 1)
    assert (worker.out / "a").read_bytes() == (b"ok" if if_exists == "replace" else OLD)
    assert not worker.parts()


async def test_one_of_many_fetches_with_the_same_dest_is_stored(origin: Origin, worker: OneWorker) -> None:
    """Each other fetch ends as `exists`, in any order of the race."""
    fetches = [{"url": origin.url(f"/{n}"), "dest": "a", "if_exists": "fail"} for n in range(20)]
    origin.behaviour = o.ok(lambda target: target.encode())

    results = await worker.results(fetches)

    [stored] = [result for result in results if result.outcome is Outcome.STORED]
    assert {Reason.EXISTS} == {result.reason for result in results if result is not stored}
    assert (worker.out / "a").read_bytes() == stored.url[stored.url.rindex("/") :].encode()
    assert not worker.parts()


async def test_skipped_fetches_do_not_count_against_the_rate_limit(origin: Origin, start: Start) -> None:
    """A long list of which most files exist is done at once."""
    worker = await start(policy={"rate_per_s": 0.01})
    for number in range(50):
        (worker.out / str(number)).write_bytes(OLD)
    fetches = [{"url": origin.url(), "dest": str(n), "if_exists": "skip"} for n in range(51)]

    results = await worker.results(fetches)

    assert [result.outcome for result in results] == [Outcome.UNCHANGED] * 50 + [Outcome.STORED]
    assert len(origin.requests) == 1
