"""Asking only for what is newer: by the caller's own validators, or by those that the workers remember."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from fetchfleet import Outcome, Reason, Result
from fetchfleet.jobs.contract.ids import batch_of
from fetchfleet.worker.sink.files import out_folder
from fetchfleet.worker.sink.files.index import STORED, sweep
from tests.component.conftest import Start
from tests.support.disks import opened
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Exchange, Origin

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


class Versioned:
    """A resource that says its version, and answers 304 to whoever has it."""

    def __init__(self, body: bytes = b"as it is", *, tag: str = '"1"', says: bool = True) -> None:
        self.body = body
        self.tag = tag
        self.says = says

    async def __call__(self, x: Exchange) -> None:
        """The body, or nothing new."""
        headers = [("ETag", self.tag), ("Last-Modified", DATE)] if self.says else []
        if Origin.header(x.request, "If-None-Match") == self.tag:
            await x.respond(304, headers)
        else:
            await x.respond(200, headers, self.body)


def conditions(origin: Origin) -> list[tuple[str | None, str | None]]:
    """What each request said that its sender has."""
    names = ("If-None-Match", "If-Modified-Since")
    return [(Origin.header(seen, names[0]), Origin.header(seen, names[1])) for seen in origin.requests]


def assert_unchanged(result: Result, path: str | None, sha256: str | None) -> None:
    """The result says so, with what is here, and what to ask with the next time."""
    assert (result.outcome, result.status, result.stale) == (Outcome.UNCHANGED, 304, False)
    assert (result.path, result.sha256) == (path, sha256)
    assert (result.etag, result.last_modified) == ('"1"', DATE)


async def test_a_result_carries_the_validators_of_its_answer(origin: Origin, worker: OneWorker) -> None:
    """Of a body and of a HEAD."""
    origin.behaviour = Versioned()

    results = [await worker.one(origin.url(), method=method) for method in ("GET", "HEAD")]

    assert [(result.etag, result.last_modified) for result in results] == [('"1"', DATE)] * 2


@pytest.mark.parametrize(
    "headers",
    [[], [("ETag", "1")], [("ETag", "*")], [("ETag", f'"{"x" * 2000}"'), ("Last-Modified", "never")]],
    ids=["none", "unquoted", "any", "too long"],
)
async def test_validators_that_cannot_be_sent_back_are_none(
    origin: Origin, worker: OneWorker, headers: list[tuple[str, str]]
) -> None:
    """The body is stored all the same."""
    origin.behaviour = o.ok(b"x", headers)

    result = await worker.one(origin.url())

    assert (result.outcome, result.etag, result.last_modified) == (Outcome.STORED, None, None)


async def test_what_the_caller_has_is_not_sent_again(origin: Origin, worker: OneWorker) -> None:
    """By the validators of an earlier result; what is at the dest stays, and is named."""
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


async def test_what_is_newer_is_stored(origin: Origin, worker: OneWorker) -> None:
    """With its own validators."""
    origin.behaviour = Versioned(b"new", tag='"2"')

    result = await worker.one(origin.url(), etag='"1"')

    assert (result.outcome, result.etag, worker.body(result)) == (Outcome.STORED, '"2"', b"new")


async def test_the_workers_remember_what_they_have(origin: Origin, worker: OneWorker) -> None:
    """The second batch transfers nothing, and its result names the file of the first."""
    origin.behaviour = Versioned()
    before = await worker.one(origin.url(), revalidate=True)

    after = await worker.one(origin.url(), revalidate=True)

    assert before.outcome is Outcome.STORED
    assert_unchanged(after, before.path, hashlib.sha256(b"as it is").hexdigest())
    assert after.bytes == before.bytes
    assert (await worker.fleet.batch(batch_of(after.id)).counts()).bytes == 0, "nothing came"
    assert conditions(origin) == [(None, None), ('"1"', DATE)]
    assert worker.files() == {before.path}


async def test_what_the_workers_have_is_replaced_by_what_is_newer(origin: Origin, worker: OneWorker) -> None:
    """At the dest, and the third time that is what they have."""
    versions = [Versioned(b"old"), Versioned(b"new", tag='"2"')]
    results = []
    for version in (versions[0], versions[1], versions[1]):
        origin.behaviour = version
        results.append(await worker.one(origin.url(), dest="a", revalidate=True))

    stored, unchanged = Outcome.STORED, Outcome.UNCHANGED
    assert [result.outcome for result in results] == [stored, stored, unchanged]
    assert [tag for tag, _ in conditions(origin)] == [None, '"1"', '"2"']
    assert worker.body(results[2]) == b"new"


async def test_without_revalidate_nothing_is_remembered(origin: Origin, worker: OneWorker) -> None:
    """A fetch that does not want it is made whole, and leaves no record."""
    origin.behaviour = Versioned()

    results = [await worker.one(origin.url()) for _ in range(2)]

    assert [result.outcome for result in results] == [Outcome.STORED] * 2
    assert conditions(origin) == [(None, None)] * 2
    assert not worker.parts()


def gone(file: Path) -> None:
    """Somebody has tidied up."""
    file.unlink()


def edited(file: Path) -> None:
    """Somebody has written into it, as much as was there."""
    file.write_bytes(b"AS IT IS")
    os.utime(file, (1, 1))


def shorter(file: Path) -> None:
    """Somebody has cut it."""
    file.write_bytes(b"as")


@pytest.mark.parametrize("change", [gone, edited, shorter], ids=lambda change: change.__name__)
async def test_what_is_not_as_it_was_is_fetched_whole(origin: Origin, worker: OneWorker, change: Any) -> None:
    """Nobody is told that something unchanged is there which is not."""
    origin.behaviour = Versioned()
    await worker.one(origin.url(), dest="a", revalidate=True)
    change(worker.out / "a")

    result = await worker.one(origin.url(), dest="a", revalidate=True)

    assert (result.outcome, worker.body(result)) == (Outcome.STORED, b"as it is")
    assert conditions(origin) == [(None, None)] * 2


async def test_what_was_only_touched_is_still_what_it_was(origin: Origin, worker: OneWorker) -> None:
    """Its digest says so."""
    origin.behaviour = Versioned()
    await worker.one(origin.url(), dest="a", revalidate=True)
    os.utime(worker.out / "a", (1, 1))

    assert (await worker.one(origin.url(), dest="a", revalidate=True)).outcome is Outcome.UNCHANGED


async def test_another_dest_gets_a_body_of_its_own(origin: Origin, worker: OneWorker) -> None:
    """A fetch ends with its body where it wants it."""
    origin.behaviour = Versioned()
    await worker.one(origin.url(), dest="a", revalidate=True)

    result = await worker.one(origin.url(), dest="b", revalidate=True)

    assert (result.outcome, result.path) == (Outcome.STORED, "b")
    assert worker.files() == {"a", "b"}


async def test_a_file_that_goes_while_its_host_is_asked_is_fetched_whole(
    origin: Origin, worker: OneWorker
) -> None:
    """The 304 is about something that is not there any more; nobody is charged for that."""
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


async def test_an_unchanged_answer_that_nobody_asked_for_is_nonsense(
    origin: Origin, worker: OneWorker
) -> None:
    """A host that gave no validators has nothing to compare with."""
    origin.behaviour = o.sequence(Versioned(says=False), o.status(304))
    await worker.one(origin.url(), revalidate=True)

    result = await worker.one(origin.url(), revalidate=True)

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.PROTOCOL)


async def test_a_callers_validators_do_not_go_to_another_origin(
    origin: Origin, other: Origin, worker: OneWorker
) -> None:
    """They stay where they were given."""
    origin.behaviour, other.behaviour = o.redirect(other.url), Versioned()

    result = await worker.one(origin.url("/a"), etag='"1"', last_modified=DATE)

    assert (conditions(origin), conditions(other)) == ([('"1"', DATE)], [(None, None)])
    assert result.outcome is Outcome.STORED


async def test_what_the_workers_remember_is_said_only_to_whom_gave_it(
    origin: Origin, other: Origin, worker: OneWorker
) -> None:
    """Behind a redirect it is the last host that is asked, not the one that leads there."""
    origin.behaviour, other.behaviour = o.redirect(other.url), Versioned()

    results = [await worker.one(origin.url("/a"), revalidate=True) for _ in range(2)]

    assert [result.outcome for result in results] == [Outcome.STORED, Outcome.UNCHANGED]
    assert conditions(origin) == [(None, None)] * 2
    assert conditions(other) == [(None, None), ('"1"', DATE)]
    assert results[0].path == results[1].path


async def test_a_redirect_to_somewhere_else_brings_the_whole_body(origin: Origin, worker: OneWorker) -> None:
    """Two resources may have the same tag for different bodies."""
    one, two = Versioned(b"one"), Versioned(b"two")
    origin.behaviour = o.by_path({"/1": one, "/2": two, "/": o.sequence(o.redirect("/1"), o.redirect("/2"))})

    results = [await worker.one(origin.url("/"), revalidate=True) for _ in range(2)]

    assert [worker.body(result) for result in results] == [b"one", b"two"]


def test_records_that_nobody_asks_for_are_dropped(tmp_path: Path) -> None:
    """The old ones go, the young ones stay, and what is not there is no trouble."""
    (tmp_path / "out" / "0a").mkdir(parents=True)
    for name, age_s in (("old", 0.0), ("young", 200.0)):
        (tmp_path / "out" / "0a" / name).write_bytes(b"{}")
        os.utime(tmp_path / "out" / "0a" / name, (age_s, age_s))

    with opened(tmp_path / "out") as sink:
        assert sweep(sink.disk.directory, "0a", 100.0) == 1
        assert sink.disk.directory.names("0a") == ["young"]
        assert sweep(sink.disk.directory, "nowhere", 100.0) == 0
        assert sink.disk.directory.names("nowhere") == []


async def test_a_worker_sweeps_when_it_starts_and_asking_keeps_a_record(
    origin: Origin, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked for lately stays, however long ago it was written."""
    monkeypatch.setattr(out_folder, "PAUSE_S", 0.0)
    origin.behaviour = Versioned()
    one = await start(worker_id="one")
    for path in ("/asked", "/forgotten"):
        await one.one(origin.url(path), revalidate=True)
    records = one.out / STORED
    for record in records.rglob("*.json"):
        os.utime(record, (0, 0))
    await one.one(origin.url("/asked"), revalidate=True)

    await start(worker_id="two")

    await wait_until(lambda: len(list(records.rglob("*.json"))) == 1, "one record gone")
    assert (await one.one(origin.url("/asked"), revalidate=True)).outcome is Outcome.UNCHANGED
