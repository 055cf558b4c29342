"""Dead letters of failed fetches, and their retry."""

from fetchfleet import DeadLetterFilter, Fetch
from tests.component.conftest import HOST, Start
from tools.one_worker import results_of
from tools.origin import behaviours as o
from tools.origin.server import Origin


async def test_retried_dead_letters_are_stored_once_their_host_has_recovered(
    origin: Origin, start: Start
) -> None:
    """Each letter has the reason, and the status or the error. A successful retry leaves no letter behind."""
    worker = await start(policy={"attempts": 2})
    origin.behaviour = o.by_path(
        {"/gone": o.NOT_FOUND, "/server-error": o.status(500), "/large": o.ok(b"x" * 100)}
    )
    fetches = [
        Fetch(url=origin.url(path), key=path, meta=path) for path in ("/gone", "/server-error", "/large")
    ]
    fetches[2] = Fetch(url=origin.url("/large"), max_bytes=10)
    failed = await worker.results(fetches)
    found = {letter.id: letter async for letter in worker.fleet.dead.iter(DeadLetterFilter(host=HOST))}

    assert {of.id: of.reason for of in failed} == {of: letter.reason for of, letter in found.items()}
    assert fetches == [found[of.id].fetch for of in failed]
    assert ["status 404", "status 500"] == [found[of.id].note for of in failed[:2]]
    assert "10" in found[failed[2].id].note

    origin.behaviour = o.ok(b"recovered")
    done = await worker.fleet.dead.retry(DeadLetterFilter(reason="http_status"))
    results = await results_of(worker.fleet.batch(done.batches[0]))
    assert ["/gone", "/server-error"] == sorted(str(of.meta) for of in results)
    assert [(b"recovered", 1)] * 2 == [(worker.body(of), of.attempts) for of in results]
    assert ["too_large"] == [letter.reason async for letter in worker.fleet.dead.iter()]
    assert 1 == await worker.fleet.dead.purge()
