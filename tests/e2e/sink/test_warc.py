"""WARC segments of worker processes: from a third-party server, and after kill -9."""

import asyncio
import hashlib
from collections import Counter
from pathlib import Path

import pytest
from redis.asyncio import Redis

from fetchfleet import Fleet, Outcome, Result
from fetchfleet.jobs import keys
from tests.support.named_workers import NamedWorkers, named_workers, results_of
from tests.support.tiny_server import tiny_server
from tests.support.waiting import wait_until
from tests.support.warc import WarcRecord, check_indexes, read, segments
from tests.support.workers import QUICK_POLICY, fetchfleet
from tools.origin.server import Exchange, Origin
from tools.origin.static_server import serve_folder

HOSTS = [f"127.0.202.{n}" for n in range(1, 6)]
FILES = 2_000
THROUGH_KILLS = 800
LARGE_BYTES = 16 << 20
POLICY = f"{QUICK_POLICY}concurrency = 16\n"


def body_of(n: int) -> bytes:
    """Return the body of the file with that number. Some are empty."""
    return hashlib.sha256(str(n).encode()).digest() * (n % 40)


async def closed(workers: NamedWorkers) -> dict[str, dict[int, WarcRecord]]:
    """Stop all workers, and return the records of each segment by their offset."""
    for name in workers.alive():
        assert await workers.members[name].terminated() == 0
    found = segments(workers.out)
    check_indexes(workers.out)
    assert not workers.parts()
    archive = {path: {record.offset: record for record in read(each)} for path, each in found.items()}
    ids = [record.field("WARC-Record-ID") for records in archive.values() for record in records.values()]
    assert len(set(ids)) == len(ids)
    return archive


def check(results: dict[str, Result], archive: dict[str, dict[int, WarcRecord]]) -> None:
    """Assert that each result is stored once, and that its record begins at its offset."""
    for url, result in results.items():
        assert result.outcome is Outcome.STORED, result
        assert result.offset is not None
        assert result.length is not None
        record = archive[str(result.path)][result.offset]
        assert (record.kind, record.field("WARC-Target-URI")) == ("response", url)
        assert record.field("Fetchfleet-ID") == result.id
        assert hashlib.sha256(record.payload).hexdigest() == result.sha256
        assert result.bytes == len(record.payload)
    places = [(result.path, result.offset) for result in results.values()]
    assert len(set(places)) == len(places)


async def test_two_workers_archive_a_third_party_server(redis_url: str, fleet: Fleet, tmp_path: Path) -> None:
    """Each of 2,000 files has one record at its result's offset. Both workers write segments."""
    site = tmp_path / "site"
    site.mkdir()
    for n in range(FILES):
        (site / str(n)).write_bytes(body_of(n))
    with (
        serve_folder(site, HOSTS) as server,
        named_workers(redis_url, tmp_path / "fleet", POLICY, FETCHFLEET_SINK="warc") as workers,
    ):
        await workers.start_all("one", "two")
        urls = {f"{server.base_urls[n % len(HOSTS)]}/{n}": n for n in range(FILES)}
        batch = await fleet.submit(list(urls))
        results = await results_of(fleet, batch.id)
        archive = await closed(workers)

    check(results, archive)
    for url, result in results.items():
        assert result.sha256 == hashlib.sha256(body_of(urls[url])).hexdigest()
    kinds = Counter(record.kind for found in archive.values() for record in found.values())
    assert kinds == {"warcinfo": len(archive), "request": FILES, "response": FILES}
    assert {"one", "two"} == {path.removeprefix("warc/").partition("-")[0] for path in archive}


@pytest.mark.parametrize(
    ("durability", "compression"), [("none", "gzip"), ("none", "none"), ("full", "gzip")]
)
async def test_after_a_kill_every_result_has_its_record(
    redis_url: str, redis: Redis, fleet: Fleet, tmp_path: Path, durability: str, compression: str
) -> None:
    """Workers are killed as they write, and restarted. Records without a result may remain."""
    policy = f'{POLICY}durability = "{durability}"\n'
    environment = {
        "FETCHFLEET_SINK": "warc",
        "FETCHFLEET_WARC_COMPRESSION": compression,
        "FETCHFLEET_LEASE_S": "1",
    }
    with (
        tiny_server(HOSTS) as bases,
        named_workers(redis_url, tmp_path / "fleet", policy, **environment) as workers,
    ):
        await workers.start_all("one", "two")
        batch = await fleet.submit([f"{bases[n % len(HOSTS)]}/{n}" for n in range(THROUGH_KILLS)])
        for name, count in (("one", THROUGH_KILLS // 10), ("two", THROUGH_KILLS // 3)):

            async def enough(count: int = count) -> bool:
                return int(await redis.xlen(keys.ALL_RESULTS)) >= count

            await wait_until(enough, "some results", 60, 0.01)
            workers.members[name].kill()
            workers.start(name)
        results = await results_of(fleet, batch.id)
        archive = await closed(workers)

    assert len(results) == THROUGH_KILLS
    check(results, archive)


async def test_after_a_kill_large_bodies_have_segments_of_their_own(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """One worker is killed within large bodies, and the other as bodies become segments.

    The workers that replace them remove the files of the dead ones.
    """
    halves, resume = set[str](), asyncio.Event()

    async def two_halves(x: Exchange) -> None:
        """Wait after the first half of the first response to each URL."""
        half = hashlib.sha256(x.request.target.encode()).digest() * (LARGE_BYTES // 64)
        await x.send_head(200, [("Content-Length", str(2 * len(half)))])
        await x.send(half)
        if x.request.target not in halves:
            halves.add(x.request.target)
            await resume.wait()
        await x.send(half)

    environment = {
        "FETCHFLEET_SINK": "warc",
        "FETCHFLEET_WARC_COMPRESSION": "none",
        "FETCHFLEET_LEASE_S": "1",
    }
    async with Origin.serving(HOSTS[0], two_halves) as first, Origin.serving(HOSTS[1], two_halves) as second:
        with named_workers(redis_url, tmp_path / "fleet", POLICY, **environment) as workers:
            await workers.start_all("one", "two")
            urls = [
                origin.url(f"/{host}/{n}") for host, origin in enumerate((first, second)) for n in range(3)
            ]
            batch = await fleet.submit(urls)
            await wait_until(lambda: len(halves) == len(urls) == len(workers.parts()), "the first halves")
            workers.members["one"].kill()
            workers.start("one")
            resume.set()
            await wait_until(workers.files, "a segment", every_s=0.001)
            workers.members["two"].kill()
            workers.start("two")
            results = await results_of(fleet, batch.id)
            archive = await closed(workers)

    check(results, archive)
    kinds = [[record.kind for record in archive[str(result.path)].values()] for result in results.values()]
    assert kinds == [["warcinfo", "request", "response"]] * len(urls)


def test_run_archives_a_list(tmp_path: Path) -> None:
    """`run --sink warc` passes the sink to its workers, and the report has each record's offset."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "a").write_bytes(b"archived")
    with serve_folder(site, HOSTS[:1]) as server:
        (tmp_path / "urls.txt").write_text(f"{server.base_urls[0]}/a\n")
        out = tmp_path / "out"
        done = fetchfleet(
            *("run", tmp_path / "urls.txt", "--out", out, "--sink", "warc"),
            *("--allow-net", "127.0.0.0/8", "--report", tmp_path / "report.jsonl"),
        )

    assert done.returncode == 0, done.stderr
    [found] = segments(out).values()
    assert [b"archived"] == [record.payload for record in read(found) if record.kind == "response"]
    assert '"offset":' in (tmp_path / "report.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sink", "tape"), "choose files or warc"),
        (("--sink", "warc", "--lines-to", "all.jsonl"), "leave it out with --sink warc"),
    ],
)
def test_an_unknown_or_unsuitable_sink_is_bad_use(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    """The command exits with 2 before it creates the out folder."""
    (tmp_path / "urls.txt").write_text("http://127.0.202.1/\n")

    done = fetchfleet("run", tmp_path / "urls.txt", "--out", tmp_path / "out", *arguments)

    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "out").exists()
