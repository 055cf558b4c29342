"""Names from templates: each placeholder, collisions, and a store by digest."""

import asyncio
import hashlib
from datetime import UTC, datetime

import pytest

from fetchfleet import Fetch, Outcome, Reason
from fetchfleet.worker.sink.files import body_name
from fetchfleet.worker.sink.files.directory import Directory
from tests.component.conftest import Start
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Behaviour, Exchange, Origin

OK_DIGEST = hashlib.sha256(b"ok").hexdigest()
OLD = b"the old body"


async def test_each_placeholder_has_its_value(origin: Origin, worker: OneWorker) -> None:
    """The date is that of the submit."""
    url, meta = origin.url("/d/page%20one.php?x=1"), {"label": "cat/dog", "weight": 1.5}
    before = datetime.now(UTC).date().isoformat()
    names = ["{host}", "{path}", "{stem}", "{ext}", "{id}", "{n}", "{sha256}", "{date}"]
    names += ["{meta.label}", "{meta.weight}", "x/{stem}{ext}"]

    results = await worker.results(
        [Fetch(url=url, name=f"{i}-/{name}", meta=meta) for i, name in enumerate(names)]
    )

    days = {before, datetime.now(UTC).date().isoformat()}
    paths = [(result.path or "").partition("/")[2] for result in results]
    assert [Outcome.STORED] * len(names) == [result.outcome for result in results]
    assert paths[:4] == [f"127.0.0.11+{origin.port}", "d/page one.php", "page one", "_php"]
    assert paths[4:7] == [results[4].id, "5", OK_DIGEST]
    assert paths[7] in days
    assert paths[8:] == ["cat_dog", "1.5", "x/page one.php"]
    assert names == [(result.name or "").partition("/")[2] for result in results]


async def test_the_name_of_the_host_is_used_without_its_folders(origin: Origin, worker: OneWorker) -> None:
    """Content-Disposition is from the host, so it may be hostile."""
    hostile = "attachment; filename*=UTF-8''..%2F..%2F.fetchfleet%00%E2%80%AE.JPG"
    origin.behaviour = o.ok(b"ok", [("Content-Disposition", hostile), ("Content-Type", "image/png")])

    result = await worker.one(origin.url("/x"), name="{host}/{stem}{ext}")

    assert result.path == f"127.0.0.11+{origin.port}/_fetchfleet__.jpg"
    assert worker.files() == {result.path}


async def test_the_extension_is_that_of_the_last_url_or_of_the_type(
    origin: Origin, worker: OneWorker
) -> None:
    """A redirect names the file, and so does the media type."""
    origin.behaviour = o.by_path(
        {
            "/go": o.redirect(origin.url("/final.webp?sig=1")),
            "/final.webp": o.ok(b"a"),
            "/photo": o.ok(b"b", [("Content-Type", "image/jpeg")]),
        }
    )

    results = await worker.results([Fetch(url=origin.url(p), name="{stem}{ext}") for p in ("/go", "/photo")])

    assert ["final.webp", "photo.jpg"] == [result.path for result in results]


@pytest.mark.parametrize("meta", [None, {"other": 1}, {"label": None}, {"label": ["a"]}])
async def test_a_missing_value_of_meta_fails_before_the_request(
    origin: Origin, worker: OneWorker, meta: object
) -> None:
    """The note names the key."""
    result = await worker.one(origin.url(), name="{meta.label}/{stem}", meta=meta)

    assert (result.outcome, result.reason, result.attempts) == (Outcome.FAILED, Reason.BAD_DEST, 0)
    assert not origin.requests
    [letter] = [letter async for letter in worker.fleet.dead.iter()]
    assert "'label'" in letter.note


@pytest.mark.parametrize("size_bytes", [100, 600_000])
async def test_bodies_with_one_name_are_all_stored(
    origin: Origin, worker: OneWorker, size_bytes: int
) -> None:
    """The first has the name, each other one has its ID before the extension. Equal bodies share a file."""
    origin.behaviour = o.ok(lambda target: target[1:2].encode() * size_bytes)
    first, *others = [Fetch(url=origin.url(f"/{n}/a.tar.gz"), name="{stem}{ext}") for n in (1, 2, 3, 1)]

    results = [*await worker.results([first]), *await worker.results(others)]

    assert [str(n).encode() * size_bytes for n in (1, 2, 3, 1)] == [worker.body(result) for result in results]
    suffixed = [f"a-{result.id}.tar.gz" for result in results]
    assert ["a.tar.gz", *suffixed[1:3], "a.tar.gz"] == [result.path for result in results]
    assert worker.files() == {"a.tar.gz", *suffixed[1:3]}
    assert not worker.parts()


@pytest.mark.parametrize("durability", ["none", "file", "full"])
@pytest.mark.parametrize("size_bytes", [100, 600_000])
async def test_a_body_that_is_there_is_not_written_twice(
    origin: Origin, start: Start, durability: str, size_bytes: int
) -> None:
    """With the digest in the name, equal bodies are one file. A damaged file of that name is kept."""
    worker = await start(policy={"durability": durability})
    body = b"x" * size_bytes
    origin.behaviour = o.ok(body)
    name = f"{hashlib.sha256(body).hexdigest()}.bin"
    first = await worker.one(origin.url("/1.bin"), name="{sha256}{ext}")
    written = (worker.out / name).stat()
    others = await worker.results(
        [Fetch(url=origin.url(f"/{n}.bin"), name="{sha256}{ext}") for n in range(3)]
    )
    stats = (worker.out / name).stat()
    (worker.out / name).write_bytes(b"y" * size_bytes)
    damaged = await worker.one(origin.url("/9.bin"), name="{sha256}{ext}")

    assert [name] * 4 == [result.path for result in (first, *others)]
    assert {Outcome.STORED} == {result.outcome for result in (first, *others, damaged)}
    assert (written.st_ino, written.st_mtime_ns) == (stats.st_ino, stats.st_mtime_ns)
    assert damaged.path == f"{name[:-4]}-{damaged.id}.bin"
    assert worker.body(damaged) == body
    assert len(worker.files()) == 2
    assert not worker.parts()


@pytest.mark.parametrize(
    ("if_exists", "name", "outcome", "requests"),
    [
        ("skip", "{host}/{path}", Outcome.UNCHANGED, 0),
        ("skip", "h/{stem}{ext}", Outcome.UNCHANGED, 1),
        ("skip", "{sha256}", Outcome.UNCHANGED, 1),
        ("fail", "{host}/{path}", Outcome.FAILED, 0),
        ("fail", "h/{stem}{ext}", Outcome.FAILED, 1),
        ("fail", "{sha256}", Outcome.FAILED, 1),
        ("replace", "{host}/{path}", Outcome.STORED, 1),
        ("replace", "{stem}{ext}", Outcome.STORED, 1),
    ],
)
async def test_if_exists_applies_to_a_name(
    origin: Origin, worker: OneWorker, if_exists: str, name: str, outcome: Outcome, requests: int
) -> None:
    """No request is sent if the name is known before it, and no body is read if the response tells it."""
    first = await worker.one(origin.url("/a/b.txt"), name=name)
    sent = len(origin.requests)
    again = await worker.one(origin.url("/a/b.txt"), name=name, if_exists=if_exists)

    assert (again.outcome, len(origin.requests) - sent) == (outcome, requests)
    assert again.path == (None if outcome is Outcome.FAILED else first.path)
    assert again.reason == (Reason.EXISTS if outcome is Outcome.FAILED else None)
    assert worker.files() == {first.path}


async def test_a_known_digest_makes_the_name_known_before_the_request(
    origin: Origin, worker: OneWorker
) -> None:
    """`skip` then sends no request for a body that is there."""
    fetch = Fetch(url=origin.url(), name="{sha256}", sha256=OK_DIGEST, if_exists="skip")
    [first], [second] = await worker.results([fetch]), await worker.results([fetch])

    assert (Outcome.STORED, Outcome.UNCHANGED) == (first.outcome, second.outcome)
    assert (first.path, len(origin.requests)) == (second.path, 1)


@pytest.mark.parametrize("order", [("/a", "/a/b"), ("/a/b", "/a")])
async def test_a_url_and_one_below_it_are_both_stored(
    origin: Origin, worker: OneWorker, order: tuple[str, str]
) -> None:
    """A file keeps its name, and so does a folder."""
    origin.behaviour = o.ok(lambda target: target.encode())

    paths = {}
    for target in order:
        result = await worker.one(origin.url(target), name="{path}")
        paths[target] = (result.path or "").replace(result.id, "ID")
        assert worker.body(result) == target.encode()

    assert paths == ({"/a": "a", "/a/b": "a_/b"} if order[0] == "/a" else {"/a/b": "a/b", "/a": "a-ID"})


async def test_a_file_that_takes_the_name_of_a_folder_at_the_last_moment_is_avoided(
    origin: Origin, worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another worker stored `a` and then `a_` between a look and the creation of a folder."""
    (worker.out / "a").write_bytes(OLD)
    around_files = body_name._around_files

    def overtaken(directory: Directory, path: str) -> str:
        found = around_files(directory, path)
        (worker.out / "a_").write_bytes(OLD)
        return found

    monkeypatch.setattr(body_name, "_around_files", overtaken)

    result = await worker.one(origin.url("/a/b"), name="{path}")

    assert (result.outcome, result.path) == (Outcome.STORED, "a__/b")
    assert worker.files() == {"a", "a_", "a__/b"}


async def test_a_link_in_a_name_is_not_followed(origin: Origin, worker: OneWorker) -> None:
    """The fetch ends as `bad_dest`, as with a dest; a link at the name itself gets a neighbour."""
    (worker.out.parent / "elsewhere").mkdir()
    (worker.out / "d").symlink_to(worker.out.parent / "elsewhere")

    below = await worker.one(origin.url("/x"), name="d/{stem}")
    beside = await worker.one(origin.url("/d"), name="{stem}")

    assert (below.outcome, below.reason) == (Outcome.FAILED, Reason.BAD_DEST)
    assert beside.path == f"d-{beside.id}"
    assert not list((worker.out.parent / "elsewhere").iterdir())


async def test_suffix_applies_to_a_literal_dest_too(origin: Origin, worker: OneWorker) -> None:
    """Several fetches of a list may then share it."""
    (worker.out / "a.txt").write_bytes(OLD)
    origin.behaviour = o.ok(lambda target: target.encode())
    fetches = [Fetch(url=origin.url(f"/{n}"), dest="a.txt", if_exists="suffix") for n in range(2)]

    results = await worker.results(fetches)

    assert [f"a-{result.id}.txt" for result in results] == [result.path for result in results]
    assert (worker.out / "a.txt").read_bytes() == OLD


async def test_a_template_in_dest_is_a_name(origin: Origin, worker: OneWorker) -> None:
    """In each form of a fetch. Such fetches of one list may share it."""
    fetches = [{"url": origin.url(f"/{n}.txt"), "dest": "{host}/{stem}{ext}"} for n in range(2)]

    results = await worker.results(fetches)

    assert ["0.txt", "1.txt"] == [(result.path or "").rpartition("/")[2] for result in results]
    assert {(None, "{host}/{stem}{ext}")} == {(result.dest, result.name) for result in results}


async def test_a_body_that_revalidates_keeps_its_name(origin: Origin, worker: OneWorker) -> None:
    """Another name does not use it. A newer body is stored beside it."""
    origin.behaviour = versioned(b"one", '"1"')
    first = await worker.one(origin.url("/a.txt"), name="{stem}{ext}", revalidate=True)
    again = await worker.one(origin.url("/a.txt"), name="{stem}{ext}", revalidate=True)
    other = await worker.one(origin.url("/a.txt"), name="other/{stem}{ext}", revalidate=True)
    origin.behaviour = versioned(b"two", '"2"')
    newer = await worker.one(origin.url("/a.txt"), name="{stem}{ext}", revalidate=True)

    assert (Outcome.STORED, "a.txt") == (first.outcome, first.path)
    assert (Outcome.UNCHANGED, "a.txt") == (again.outcome, again.path)
    assert (Outcome.STORED, "other/a.txt") == (other.outcome, other.path)
    assert (Outcome.STORED, f"a-{newer.id}.txt") == (newer.outcome, newer.path)


def versioned(body: bytes, tag: str) -> Behaviour:
    """Respond with the body, or with 304 to its ETag."""

    async def answer(x: Exchange) -> None:
        known = Origin.header(x.request, "If-None-Match") == tag
        await x.respond(304 if known else 200, [("ETag", tag)], b"" if known else body)

    return answer


async def test_two_workers_that_race_for_a_name_store_both_bodies(origin: Origin, start: Start) -> None:
    """They serve two hosts. Both bodies arrive before either has its name."""
    may_end = asyncio.Event()
    origin.behaviour = o.held(may_end, o.ok(b"one"))
    async with Origin.serving("127.0.0.12", o.held(may_end, o.ok(b"two"))) as other:
        first, _ = await start(worker_id="one"), await start(worker_id="two")
        batch = await first.submit(
            [Fetch(url=at.url("/a.txt"), name="{stem}{ext}") for at in (origin, other)]
        )
        await wait_until(lambda: origin.requests and other.requests, "both requests")
        may_end.set()
        results = [result async for result in batch.results()]

    [plain] = [result for result in results if result.path == "a.txt"]
    [suffixed] = [result for result in results if result is not plain]
    assert suffixed.path == f"a-{suffixed.id}.txt"
    assert {b"one", b"two"} == {first.body(result) for result in results}


async def test_head_stores_nothing_under_a_name(origin: Origin, worker: OneWorker) -> None:
    """As without one."""
    result = await worker.one(origin.url("/a.txt"), method="HEAD", name="{stem}{ext}")

    assert (result.outcome, result.path, worker.files()) == (Outcome.STORED, None, set())


async def test_a_file_that_appears_during_the_fetch_is_kept(origin: Origin, worker: OneWorker) -> None:
    """Another program creates it between the request and the end of the body."""
    may_end = asyncio.Event()
    origin.behaviour = o.held(may_end)
    batch = await worker.submit([Fetch(url=origin.url("/a.txt"), name="{stem}{ext}")])
    await wait_until(lambda: origin.requests, "the request")
    (worker.out / "a.txt").write_bytes(OLD)
    may_end.set()

    [result] = [result async for result in batch.results()]

    assert result.path == f"a-{result.id}.txt"
    assert (worker.out / "a.txt").read_bytes() == OLD
