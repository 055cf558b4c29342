"""Revalidation: conditional requests with the caller's validators or those of the stored body."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from fetchfleet import Outcome, Reason, Result
from fetchfleet.jobs.contract.ids import batch_of
from fetchfleet.worker.sink.files import out_folder
from fetchfleet.worker.sink.files.index import STORED, drop_unused
from tests.component.conftest import Start
from tests.support.disks import opened
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Exchange, Origin

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


class Versioned:
    """A resource with validators that responds to its own ETag with 304."""

    def __init__(self, body: bytes = b"as it is", *, tag: str = '"1"', has_validators: bool = True) -> None:
        self.body = body
        self.tag = tag
        self.has_validators = has_validators

    async def __call__(self, x: Exchange) -> None:
        """Send the body, or a 304."""
        headers = [("ETag", self.tag), ("Last-Modified", DATE)] if self.has_validators else []
        if Origin.header(x.request, "If-None-Match") == self.tag:
            await x.respond(304, headers)
        else:
            await x.respond(200, headers, self.body)


def conditions(origin: Origin) -> list[tuple[str | None, str | None]]:
    """Return the If-None-Match and If-Modified-Since of each request."""
    names = ("If-None-Match", "If-Modified-Since")
    return [(Origin.header(seen, names[0]), Origin.header(seen, names[1])) for seen in origin.requests]


def assert_unchanged(result: Result, path: str | None, sha256: str | None) -> None:
    """Assert that the result is `unchanged`, with this file and the validators for the next request."""
    assert (result.outcome, result.status, result.stale) == (Outcome.UNCHANGED, 304, False)
    assert (result.path, result.sha256) == (path, sha256)
    assert (result.etag, result.last_modified) == ('"1"', DATE)


async def test_a_result_has_the_validators_of_its_response(origin: Origin, worker: OneWorker) -> None:
    """The same applies to HEAD requests."""
    origin.behaviour = Versioned()

    results = [await worker.one(origin.url(), method=method) for method in ("GET", "HEAD")]

    assert [(result.etag, result.last_modified) for result in results] == [('"1"', DATE)] * 2


@pytest.mark.parametrize(
    "headers",
    [[], [("ETag", "1")], [("ETag", "*")], [("ETag", f'"{"x" * 2000}"'), ("Last-Modified", "never")]],
    ids=["none", "unquoted", "any", "too long"],
)
async def test_invalid_validators_are_not_in_the_result(
    origin: Origin, worker: OneWorker, headers: list[tuple[str, str]]
) -> None:
    """The body is stored anyway."""
    origin.behaviour = o.ok(b"x", headers)

    result = await worker.one(origin.url())

    assert (result.outcome, result.etag, result.last_modified) == (Outcome.STORED, None, None)


async def test_a_body_that_the_caller_has_is_not_transferred_again(origin: Origin, worker: OneWorker) -> None:
    """The request has the validators of an earlier result. A file at the dest stays and is named."""
    origin.behaviour = Versioned()
    before = await worker.one(origin.url(), dest="a")
    validators = {"etag": before.etag, "last_modified": before.last_modified}

    there = await worker.one(origin.url(), dest="a", **validators)
    elsewhere = await worker.one(origin.url(), dest="b", **validators)
    nowhere = await worker.one(origin.url(), **validators)

    assert_unchanged(there, "a", None)
    assert there.bytes == len(b"as it is")
    assert_unchanged(elsewhere, None, None)
    assert_unchanged(nowhere, None, None)
    assert conditions(origin) == [(None, None)] + [('"1"', DATE)] * 3
    assert worker.files() == {"a"}


async def test_a_newer_body_is_stored(origin: Origin, worker: OneWorker) -> None:
    """The result has the new ETag."""
    origin.behaviour = Versioned(b"new", tag='"2"')

    result = await worker.one(origin.url(), etag='"1"')

    assert (result.outcome, result.etag, worker.body(result)) == (Outcome.STORED, '"2"', b"new")


async def test_a_body_that_the_workers_stored_is_not_transferred_again(
    origin: Origin, worker: OneWorker
) -> None:
    """The second result names the file of the first."""
    origin.behaviour = Versioned()
    before = await worker.one(origin.url(), revalidate=True)

    after = await worker.one(origin.url(), revalidate=True)

    assert before.outcome is Outcome.STORED
    assert_unchanged(after, before.path, hashlib.sha256(b"as it is").hexdigest())
    assert after.bytes == before.bytes
    assert (await worker.fleet.batch(batch_of(after.id)).counts()).bytes == 0, "a 304 has no body"
    assert conditions(origin) == [(None, None), ('"1"', DATE)]
    assert worker.files() == {before.path}


async def test_a_newer_body_replaces_the_stored_one_and_its_validators(
    origin: Origin, worker: OneWorker
) -> None:
    """The third request has the ETag of the second response."""
    versions = [Versioned(b"old"), Versioned(b"new", tag='"2"')]
    results = []
    for version in (versions[0], versions[1], versions[1]):
        origin.behaviour = version
        results.append(await worker.one(origin.url(), dest="a", revalidate=True))

    stored, unchanged = Outcome.STORED, Outcome.UNCHANGED
    assert [result.outcome for result in results] == [stored, stored, unchanged]
    assert [tag for tag, _ in conditions(origin)] == [None, '"1"', '"2"']
    assert worker.body(results[2]) == b"new"


async def test_without_revalidate_no_record_is_written(origin: Origin, worker: OneWorker) -> None:
    """The second request is unconditional."""
    origin.behaviour = Versioned()

    results = [await worker.one(origin.url()) for _ in range(2)]

    assert [result.outcome for result in results] == [Outcome.STORED] * 2
    assert conditions(origin) == [(None, None)] * 2
    assert not worker.parts()


def gone(file: Path) -> None:
    """Delete the file."""
    file.unlink()


def edited(file: Path) -> None:
    """Overwrite the file with as many other bytes."""
    file.write_bytes(b"AS IT IS")
    os.utime(file, (1, 1))


def shorter(file: Path) -> None:
    """Truncate the file."""
    file.write_bytes(b"as")


@pytest.mark.parametrize("change", [gone, edited, shorter], ids=lambda change: change.__name__)
async def test_a_body_whose_file_changed_is_transferred_again(
    origin: Origin, worker: OneWorker, change: Any
) -> None:
    """The request is unconditional, because the file no longer matches its record."""
    origin.behaviour = Versioned()
    await worker.one(origin.url(), dest="a", revalidate=True)
    change(worker.out / "a")

    result = await worker.one(origin.url(), dest="a", revalidate=True)

    assert (result.outcome, worker.body(result)) == (Outcome.STORED, b"as it is")
    assert conditions(origin) == [(None, None)] * 2


async def test_a_file_with_another_time_and_the_same_digest_is_unchanged(
    origin: Origin, worker: OneWorker
) -> None:
    """A new modification time only causes the digest to be computed again."""
    origin.behaviour = Versioned()
    await worker.one(origin.url(), dest="a", revalidate=True)
    os.utime(worker.out / "a", (1, 1))

    assert (await worker.one(origin.url(), dest="a", revalidate=True)).outcome is Outcome.UNCHANGED


async def test_a_body_with_another_dest_is_transferred_again(origin: Origin, worker: OneWorker) -> None:
    """Each dest gets its own file."""
    origin.behaviour = Versioned()
    await worker.one(origin.url(), dest="a", revalidate=True)

    result = await worker.one(origin.url(), dest="b", revalidate=True)

    assert (result.outcome, result.path) == (Outcome.STORED, "b")
    assert worker.files() == {"a", "b"}


async def test_a_body_whose_file_disappears_during_the_request_is_transferred_again(
    origin: Origin, worker: OneWorker
) -> None:
    """The 304 is useless then. The request counts as an interruption and costs no attempt."""
    versioned = origin.behaviour = Versioned()
    await worker.one(origin.url(), dest="a", revalidate=True)

    async def meanwhile(x: Exchange) -> None:
        (worker.out / "a").unlink(missing_ok=True)
        await versioned(x)

    origin.behaviour = meanwhile
    result = await worker.one(origin.url(), dest="a", revalidate=True)

    assert (result.outcome, result.attempts, result.interruptions) == (Outcome.STORED, 1, 1)
    assert worker.body(result) == b"as it is"
    assert conditions(origin) == [(None, None), ('"1"', DATE), (None, None)]


async def test_a_304_is_a_protocol_error_if_the_host_gave_no_validators(
    origin: Origin, worker: OneWorker
) -> None:
    """The second request is unconditional."""
    origin.behaviour = o.sequence(Versioned(has_validators=False), o.status(304))
    await worker.one(origin.url(), revalidate=True)

    result = await worker.one(origin.url(), revalidate=True)

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.PROTOCOL)


async def test_the_callers_validators_are_not_sent_to_another_origin(
    origin: Origin, other: Origin, worker: OneWorker
) -> None:
    """The redirected request is unconditional."""
    origin.behaviour, other.behaviour = o.redirect(other.url), Versioned()

    result = await worker.one(origin.url("/a"), etag='"1"', last_modified=DATE)

    assert (conditions(origin), conditions(other)) == ([('"1"', DATE)], [(None, None)])
    assert result.outcome is Outcome.STORED


async def test_stored_validators_are_sent_only_to_the_origin_that_gave_them(
    origin: Origin, other: Origin, worker: OneWorker
) -> None:
    """After a redirect this is the last host, not the redirecting one."""
    origin.behaviour, other.behaviour = o.redirect(other.url), Versioned()

    results = [await worker.one(origin.url("/a"), revalidate=True) for _ in range(2)]

    assert [result.outcome for result in results] == [Outcome.STORED, Outcome.UNCHANGED]
    assert conditions(origin) == [(None, None)] * 2
    assert conditions(other) == [(None, None), ('"1"', DATE)]
    assert results[0].path == results[1].path


async def test_a_redirect_to_another_url_transfers_the_whole_body(origin: Origin, worker: OneWorker) -> None:
    """Two resources may have the same ETag for different bodies."""
    one, two = Versioned(b"one"), Versioned(b"two")
    origin.behaviour = o.by_path({"/1": one, "/2": two, "/": o.sequence(o.redirect("/1"), o.redirect("/2"))})

    results = [await worker.one(origin.url("/"), revalidate=True) for _ in range(2)]

    assert [worker.body(result) for result in results] == [b"one", b"two"]


def test_old_records_are_deleted(tmp_path: Path) -> None:
    """Younger ones stay. A missing directory is not an error."""
    (tmp_path / "out" / "0a").mkdir(parents=True)
    for name, age_s in (("old", 0.0), ("young", 200.0)):
        (tmp_path / "out" / "0a" / name).write_bytes(b"{}")
        os.utime(tmp_path / "out" / "0a" / name, (age_s, age_s))

    with opened(tmp_path / "out") as sink:
        assert drop_unused(sink.disk.directory, "0a", 100.0) == 1
        assert sink.disk.directory.names("0a") == ["young"]
        assert drop_unused(sink.disk.directory, "nowhere", 100.0) == 0
        assert sink.disk.directory.names("nowhere") == []


async def test_a_starting_worker_deletes_records_that_were_not_used_lately(
    origin: Origin, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conditional request renews the time of its record."""
    monkeypatch.setattr(out_folder, "PAUSE_S", 0.0)
    origin.behaviour = Versioned()
    one = await start(worker_id="one")
    for path in ("/used", "/forgotten"):
        await one.one(origin.url(path), revalidate=True)
    records = one.out / STORED
    for record in records.rglob("*.json"):
        os.utime(record, (0, 0))
    await one.one(origin.url("/used"), revalidate=True)

    await start(worker_id="two")

    await wait_until(lambda: len(list(records.rglob("*.json"))) == 1, "one record to be deleted")
    assert (await one.one(origin.url("/used"), revalidate=True)).outcome is Outcome.UNCHANGED
