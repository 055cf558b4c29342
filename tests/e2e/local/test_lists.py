"""Lists as users have them: patterns, object stores, sitemaps, interrupted submits, and memory."""

import asyncio
import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import obstore
from obstore.store import S3Store

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.body import zstd
from fetchfleet.worker.local.run import batch_of_list, list_batch_id
from tests.support.fork_server import COMMAND, Process
from tests.support.object_store import Bucket
from tests.support.waiting import wait_until
from tests.support.workers import fetchfleet, workers
from tools.origin.behaviours import by_path, ok, status
from tools.origin.server import Origin

LOOPBACK = ("--allow-net", "127.0.0.0/8")
LIST_FETCHES = 12_000
"""More than a list that stays in memory."""
MEMORY = """
import sys
from pathlib import Path
from fetchfleet.worker.cli.app import run_command
assert not run_command()
[line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(line.split()[1], file=sys.stderr)
"""


async def run(*arguments: str | Path, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the command in a thread, so that the loop can serve the origins."""
    return await asyncio.to_thread(fetchfleet, *arguments, stdin=stdin)


async def test_a_pattern_of_files_in_several_formats_is_one_run(tmp_path: Path) -> None:
    """Columns become the meta of results. The command says how it reads tables."""
    report = tmp_path / "report"
    async with Origin.serving("127.0.0.171", ok(b"x")) as origin:
        (tmp_path / "1.csv").write_text(f"id,image\n7,{origin.url('/csv')}\n")
        (tmp_path / "2.txt.gz").write_bytes(gzip.compress(f"{origin.url('/gzip')}\n".encode()))
        (tmp_path / "3.jsonl.zst").write_bytes(zstd.compress(b'{"url":"%b"}' % origin.url("/zstd").encode()))
        out = ("--out", tmp_path / "out", "--report", report, "--meta-cols", "id", *LOOPBACK)
        refused = await run("run", tmp_path / "[123].*", *out)
        ended = await run("run", tmp_path / "1.csv", *out)
        others = await run("run", tmp_path / "[23].*", "--out", tmp_path / "out", *LOOPBACK)
        expanded = await run(
            "run", "-", "--expand", "--out", tmp_path / "out", *LOOPBACK, stdin=origin.url("/{1..3}")
        )

    assert 2 == refused.returncode
    assert "2.txt.gz: no column has URLs only; give it with --url-col" in refused.stderr
    assert 0 == ended.returncode, ended.stderr
    assert "1.csv: CSV: its URLs are in column 2 ('image')" in ended.stderr
    assert {"id": "7"} == json.loads(report.read_text())["meta"]
    assert 0 == others.returncode, others.stderr
    assert 0 == expanded.returncode, expanded.stderr
    assert ["/1", "/2", "/3", "/csv", "/gzip", "/zstd"] == sorted(
        request.target for request in origin.requests
    )


async def test_a_list_in_an_object_store_is_read(tmp_path: Path, bucket: Bucket) -> None:
    """Credentials and endpoint come from the environment. A pattern names several objects."""
    store = S3Store(bucket.name)
    async with Origin.serving("127.0.0.172", ok(b"x")) as origin:
        for name in ("a.txt", "b.txt", "deeper/c.txt"):
            await obstore.put_async(store, f"lists/{name}", f"{origin.url(f'/{name}')}\n".encode())
        ended = await run("run", f"s3://{bucket.name}/lists/*.txt", "--out", tmp_path / "out", *LOOPBACK)
        missing = await run("run", f"s3://{bucket.name}/lists/none", "--out", tmp_path / "out", *LOOPBACK)

    assert 0 == ended.returncode, ended.stderr
    assert {"/a.txt", "/b.txt"} == {request.target for request in origin.requests}
    assert 2 == missing.returncode
    assert f"s3://{bucket.name}/lists/none: 404 Not Found: NoSuchKey" in missing.stderr


def sitemap(root: str, entry: str, *urls: str) -> bytes:
    """Return a sitemap or an index."""
    entries = "".join(f"<{entry}><loc>{url}</loc></{entry}>" for url in urls)
    return f'<{root} xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{entries}</{root}>'.encode()


async def test_sitemaps_are_fetched_through_the_fleet(redis_url: str, tmp_path: Path) -> None:
    """An index names them. `submit` needs the folder of the workers; a missing sitemap ends the command."""
    pages = [f"/page{number}" for number in range(4)]
    async with Origin.serving("127.0.0.173", status(404)) as origin:
        urls = [origin.url(page) for page in pages]
        index = [origin.url("/a.xml"), origin.url("/b.xml.gz")]
        origin.behaviour = by_path(
            {
                "/index.xml": ok(sitemap("sitemapindex", "sitemap", *index)),
                "/a.xml": ok(sitemap("urlset", "url", *urls[:2])),
                "/b.xml.gz": ok(gzip.compress(sitemap("urlset", "url", *urls[2:]))),
                "/page": ok(b"page", [("Content-Type", "text/plain")]),
            },
            otherwise=status(404),
        )
        header = ("--header", "X-Team: data")
        pages_only = ("--set", 'accept={types=["text/plain"]}')
        out = ("--out", tmp_path / "out", *LOOPBACK)
        ran = await run("run", origin.url("/index.xml"), *header, *pages_only, *out)
        ran_requests, origin.requests[:] = list(origin.requests), []
        missing = await run("run", origin.url("/none.xml"), *out)
        refused = await run("submit", origin.url("/index.xml"), "--redis", redis_url)
        dry = await run("run", origin.url("/index.xml"), "--dry-run")
        with workers(1, redis_url, tmp_path):
            where = ("--redis", redis_url, "--out", tmp_path / "bodies")
            submitted = await run("submit", origin.url("/index.xml"), "--wait", *where)

    assert 0 == ran.returncode, ran.stderr
    assert "4 of 4 fetches" in ran.stderr
    assert 1 == ran.stderr.count("bytes stored"), "the lists have no summary of their own"
    assert ["/index.xml", "/a.xml", "/b.xml.gz", *pages] == sorted(
        (request.target for request in ran_requests), key=["/index.xml", "/a.xml", "/b.xml.gz", *pages].index
    )
    assert {"data"} == {origin.header(request, "x-team") for request in ran_requests}
    assert (2, True) == (missing.returncode, "/none.xml: not fetched: http_status 404" in missing.stderr)
    assert [(2, True)] * 2 == [
        (ended.returncode, "is fetched by `run`, and by `submit` if --out" in ended.stderr)
        for ended in (refused, dry)
    ]
    assert 0 == submitted.returncode, submitted.stderr
    assert "4 of 4 fetches" in submitted.stderr


async def test_an_interrupted_submit_is_completed_by_the_same_command(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """Each fetch is enqueued once. A repeated submit after a complete one is another batch."""
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"http://127.0.0.174/{number}\n" for number in range(LIST_FETCHES)))
    command: list[str | Path] = ["submit", listed, "--redis", redis_url]
    limited = Process(COMMAND, *command, "--max-backlog", "3000", "--when-full", "wait", env=dict(os.environ))
    async with connect(redis_url) as redis:

        async def is_full() -> bool:
            return int(await redis.get(keys.BACKLOG) or 0) == 3000

        try:
            await wait_until(is_full, "the backlog to be full")
        finally:
            limited.send_signal(signal.SIGKILL)
            await asyncio.to_thread(limited.wait)
        second = await run(*command)
        first_batch = await fleet.batch(second.stdout.strip()).counts()
        waiting = await redis.llen(keys.waiting_at("127.0.0.174", "normal"))  # type: ignore[misc]
        third = await run(*command)
        second_batch = await fleet.batch(third.stdout.strip()).counts()
        changed = await run(*command, "--header", "A: b")

    assert 0 == second.returncode, second.stderr
    assert f"completing batch {second.stdout.strip()}" in second.stderr
    assert (LIST_FETCHES, True) == (first_batch.total, first_batch.sealed)
    assert LIST_FETCHES == waiting
    assert 0 == third.returncode, third.stderr
    assert (LIST_FETCHES, True) == (second_batch.total, second_batch.sealed)
    assert 3 == len({second.stdout, third.stdout, changed.stdout})


async def test_the_batch_of_a_list_is_the_first_one_that_is_not_complete(fleet: Fleet) -> None:
    """It is found among many complete ones in a few calls."""
    digest = "ab" * 32
    for number in range(5):
        assert (list_batch_id(digest, number), False) == await batch_of_list(fleet, digest)
        await fleet.submit(["http://a.example/"], batch_id=list_batch_id(digest, number))
    assert list_batch_id(digest, 0, "pusher").startswith("f")
    assert not any(list_batch_id(digest, number).startswith("f") for number in range(200))


def dry_run_kib(listed: Path) -> int:
    """Return the most memory that a dry run of the list has had, in KiB."""
    command = [sys.executable, "-c", MEMORY, "run", str(listed), "--dry-run"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert "nothing was enqueued" in ended.stdout
    return int(ended.stderr)


def test_the_memory_of_a_dry_run_does_not_grow_with_the_list(tmp_path: Path) -> None:
    """It holds for ten times the lines, with a dest in every tenth of them."""
    used_kib = []
    for lines in (20_000, 200_000):
        listed = tmp_path / "list"
        with listed.open("w") as file:
            for number in range(lines):
                url = f"http://h{number % 1000}.example/{number}"
                file.write(f"{url}\n" if number % 10 else f'{{"url":"{url}","dest":"d/{number}"}}\n')
        used_kib.append(dry_run_kib(listed))

    assert used_kib[1] < used_kib[0] + 8 * 1024
