"""The recipes of docs/recipes.md: their commands and programs, run as the page has them.

Only hosts, the bucket and Redis are replaced by those of the test.
"""

import asyncio
import base64
import datetime as dt
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet
import pytest
from standardwebhooks import Webhook

from fetchfleet.worker.local.process import die_with_parent
from tests.support.object_store import Bucket
from tests.support.prometheus import free_ports
from tests.support.range_server import RangedBody, body_of
from tests.support.waiting import wait_until
from tests.support.workers import QUICK_POLICY
from tools.origin.behaviours import by_path, ok, status
from tools.origin.server import Behaviour, Exchange, Header, Origin

PAGE = Path(__file__).parents[3] / "docs" / "recipes.md"
TIMEOUT_S = 90

needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")

_BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
_FILE = re.compile(r"# (\S+)\n")
"""The first line of a program: its file name."""
_HOST = re.compile(r"https://\w+\.example\.com")
_DURATION = re.compile(r" in [\d.]+ s\b")


class Ended(NamedTuple):
    """A command of the page that has ended."""

    exit_code: int
    output: str
    """Standard output and standard error."""

    def has(self, shown: list[str]) -> bool:
        """Return whether the output has each line that the page shows."""
        output = "\n".join(map(_plain, self.output.splitlines()))
        for line in shown:
            pattern = re.escape(_plain(line)).replace("…", ".*")
            assert re.search(f"^{pattern}$", output, re.MULTILINE), f"{line}\n{self.output}"
        return True


class Recipe:
    """A section of the page, in a folder of its own."""

    def __init__(self, title: str, folder: Path, origin: Origin, **replaced: str) -> None:
        """Write the programs of the section to the folder. replaced: further words of the page."""
        self.commands: list[str] = []
        self.shown: list[list[str]] = []
        """The lines of each output that the page shows."""
        self._folder = folder
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "FETCHFLEET_ALLOW_NET": "127.0.0.0/8",
            "COLUMNS": "120",
        }
        section = PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        for language, block in _BLOCK.findall(section):
            text = block
            for word, replacement in replaced.items():
                text = text.replace(word, replacement)
            text = _HOST.sub(origin.url("").rstrip("/"), text)
            if language == "sh":
                self.commands.append(text)
            elif language == "text":
                self.shown.append(text.splitlines())
            elif match := _FILE.match(text):
                (folder / match[1]).write_text(text)

    @asynccontextmanager
    async def running(self, command: str) -> AsyncIterator[None]:
        """Run a command that does not end by itself; end it with SIGTERM after the block."""
        with (self._folder / "running.txt").open("ab") as log:
            process = subprocess.Popen(  # noqa: ASYNC220 it only starts it
                ["bash", "-c", f"exec env {command}"],
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509 no threads hold locks here
            )
        try:
            yield
        finally:
            process.terminate()
            code = await asyncio.to_thread(process.wait, TIMEOUT_S)
            assert code in {0, -signal.SIGTERM}  # uvicorn sends itself the signal again

    async def run(self, command: str) -> Ended:
        """Run commands in bash, in the folder."""
        ended = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
        )
        return Ended(ended.returncode, ended.stdout)

    def text(self, name: str) -> str:
        """Return the text of a file in the folder."""
        return (self._folder / name).read_text()


def _plain(line: str) -> str:
    return " ".join(_DURATION.sub(" in N s", line).split())


def image(body: bytes, *headers: Header, kind: str = "image/jpeg") -> Behaviour:
    """Respond with an image."""
    return ok(body, [("Content-Type", kind), *headers])


async def test_images_of_a_parquet_list_are_stored_by_digest(bucket: Bucket, tmp_path: Path) -> None:
    """Two are equal, one is a page, one is tiny, one is not for training, one is gone."""
    kite, others = b"\xff\xd8kite" * 500, [b"\xff\xd8%d" % n * 500 for n in range(2)]
    photos = {
        "A red kite": image(kite),
        "The same kite": image(kite),
        "A page": ok(b"<html>" * 500, [("Content-Type", "text/html")]),
        "A pixel": image(b"GIF89a", kind="image/gif"),
        "Not for training": image(others[0], ("X-Robots-Tag", "noai")),
        "Gone": status(404),
        "A buzzard": image(others[0]),
        "An owl": image(others[1], kind="image/png"),
    }
    behaviour = by_path({f"/{n}": photo for n, photo in enumerate(photos.values(), 1)})
    async with Origin.serving("127.0.0.211", behaviour) as origin:
        recipe = Recipe("Image dataset in a bucket", tmp_path, origin, bucket=bucket.name)
        rows = [
            {"id": str(n), "caption": caption, "url": origin.url(f"/{n}"), "licence": "CC0"}
            for n, caption in enumerate(photos, 1)
        ]
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "images.parquet")
        fetch, show = recipe.commands
        fetched = await recipe.run(fetch)
        again = "--only-failed images-done.parquet --report images-retried.parquet"
        retried = await recipe.run(f"{fetch.rstrip()} {again}")
        report = await recipe.run(show)
        keys = bucket.server.request("GET", f"/{bucket.name}?list-type=2").body.decode()

    assert (fetched.exit_code, retried.exit_code, report.exit_code) == (1, 1, 0), retried.output
    assert fetched.has(recipe.shown[0])
    assert report.has(recipe.shown[1])
    assert "4 of 4 fetches" in retried.output
    stored = {hashlib.sha256(body).hexdigest() for body in (kite, *others)}
    assert stored == set(re.findall(r"<Key>images/(\w{64})\.(?:jpg|png)</Key>", keys))
    assert again in " ".join(PAGE.read_text().split())


@needs_curl
async def test_a_mirror_is_checked_and_repaired(tmp_path: Path) -> None:
    """The second run transfers the file alone that was damaged here."""
    files = {
        "app-linux.tar.gz": body_of(3 << 20),
        "app-mac.tar.gz": body_of(9_000),
        "notes/README.txt": b"hi",
    }
    sums = "".join(f"{hashlib.sha256(body).hexdigest()}  {name}\n" for name, body in files.items())
    served = {f"/pub/v2/{name}": revalidated(RangedBody(body)) for name, body in files.items()}
    async with Origin.serving(
        "127.0.0.212", by_path({"/pub/v2/SHA256SUMS": ok(sums.encode()), **served})
    ) as origin:
        recipe = Recipe("Mirror with checksums", tmp_path, origin)
        fetch, find = recipe.commands
        first, listed = await recipe.run(fetch), await recipe.run(find)
        readme = tmp_path / "mirror" / "pub" / "v2" / "notes" / "README.txt"
        readme.write_bytes(b"ho")
        second = await recipe.run(fetch)
        requests = len(origin.requests)
        skipped = await recipe.run(fetch.replace("replace --revalidate", "skip"))
        after_skip = [seen.target for seen in origin.requests[requests:]]

    assert (first.exit_code, second.exit_code, skipped.exit_code) == (0, 0, 0), first.output
    assert first.has(recipe.shown[0])
    assert listed.has(recipe.shown[1])
    assert second.has(recipe.shown[2])
    assert readme.read_bytes() == b"hi"
    assert after_skip == ["/pub/v2/SHA256SUMS"]


def revalidated(body: RangedBody) -> Behaviour:
    """Respond with 304 to a request that has the validator of the body."""

    async def answer(x: Exchange) -> None:
        if Origin.header(x.request, "If-None-Match") == dict(body.headers)["ETag"]:
            await x.respond(304, body.headers)
        else:
            await body(x)

    return answer


def query_of(x: Exchange) -> str:
    """Return the value of the only parameter in the query."""
    return unquote(x.request.target.partition("=")[2])


async def test_the_pages_of_an_api_become_one_file(tmp_path: Path) -> None:
    """Each page has three records."""

    async def page(x: Exchange) -> None:
        records = [{"page": int(query_of(x)), "row": row} for row in range(3)]
        await x.respond(200, [], "".join(f"{json.dumps(record)}\n" for record in records).encode())

    async with Origin.serving("127.0.0.213", page) as origin:
        recipe = Recipe("Paged API to JSON Lines", tmp_path, origin)
        ended = await recipe.run(recipe.commands[0])
        tokens = {Origin.header(seen, "Authorization") for seen in origin.requests}
    records = [json.loads(line) for line in recipe.text("events.jsonl").splitlines()]

    assert ended.exit_code == 0
    assert ended.has(recipe.shown[0])
    assert tokens == {"Bearer TOKEN"}
    assert sorted((one["page"], one["row"]) for one in records) == [
        (page, row) for page in range(1, 41) for row in range(3)
    ]


async def test_the_cursors_of_an_api_are_followed_once(redis_url: str, tmp_path: Path) -> None:
    """A second start of the program makes no request, and writes the same files."""

    async def page(x: Exchange) -> None:
        number = int(query_of(x) or "0")
        items = [{"id": number * 2 + place} for place in range(2)]
        await x.respond(
            200, [], json.dumps({"items": items, "next": str(number + 1) if number < 2 else None}).encode()
        )

    async with Origin.serving("127.0.0.214", page) as origin:
        recipe = Recipe("API with cursors", tmp_path, origin, **{"redis://localhost:6379": redis_url})
        worker, program = recipe.commands
        async with recipe.running(worker):
            first, second = await recipe.run(program), await recipe.run(program)
        requests = len(origin.requests)

    assert (first.exit_code, second.exit_code) == (0, 0), first.output
    assert first.has(recipe.shown[0])
    assert second.has(recipe.shown[0])
    assert requests == 6
    assert recipe.text("orders.jsonl") == "".join(f'{{"id": {number}}}\n' for number in range(6))


async def test_a_nightly_refresh_transfers_what_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second night one page has changed, and one gets a 503."""
    pages = {"/about": RangedBody(b"about us"), "/news": RangedBody(b"old"), "/prices": RangedBody(b"1 EUR")}
    behaviours = {path: revalidated(page) for path, page in pages.items()}
    (tmp_path / "policy.toml").write_text(QUICK_POLICY)
    monkeypatch.setenv("FETCHFLEET_POLICY", str(tmp_path / "policy.toml"))
    async with Origin.serving("127.0.0.215", by_path(behaviours)) as origin:
        recipe = Recipe("Nightly refresh", tmp_path, origin)
        (tmp_path / "urls.txt").write_text("".join(origin.url(path) + "\n" for path in pages))
        [refresh] = recipe.commands
        first = await recipe.run(refresh)
        pages["/news"].body, pages["/news"].headers = b"new", [("ETag", '"two"')]
        behaviours["/prices"] = status(503)
        second = await recipe.run(refresh)
        host = origin.url("").partition("//")[2].rstrip("/").replace(":", "+")
    stored = {path: (tmp_path / "site" / f"{host}{path}").read_bytes() for path in pages}

    assert (first.exit_code, second.exit_code) == (0, 0), first.output
    assert second.has(recipe.shown[0])
    assert stored == {"/about": b"about us", "/news": b"new", "/prices": b"1 EUR"}


async def test_the_pages_of_a_sitemap_are_packed_for_archives(tmp_path: Path) -> None:
    """The judge is py-wacz."""
    html = [("Content-Type", "text/html")]
    pages = {f"/{n}": ok(b"<html>%d</html>" % n, html) for n in range(3)}

    async def sitemap(x: Exchange) -> None:
        places = "".join(f"<url><loc>{origin.url(path)}</loc></url>" for path in pages)
        urls = f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{places}</urlset>'
        await x.respond(200, [("Content-Type", "application/xml")], urls.encode())

    async with Origin.serving("127.0.0.216", by_path({"/sitemap.xml": sitemap, **pages})) as origin:
        recipe = Recipe("Archive in WACZ", tmp_path, origin)
        ended = await recipe.run(recipe.commands[0])
        judged = await recipe.run("wacz validate -f site.wacz")
        asked = {seen.target for seen in origin.requests}

    assert ended.exit_code == 0, ended.output
    assert ended.has(recipe.shown[0])
    assert "the passed WACZ is valid" in judged.output
    assert asked == {"/robots.txt", "/sitemap.xml", "/0", "/1", "/2"}


@needs_curl
async def test_a_service_is_notified_of_the_end_of_an_import(redis_url: str, tmp_path: Path) -> None:
    """It refuses a webhook with another signature."""
    [port] = free_ports("127.0.0.1", 1)
    replaced = {
        "redis://localhost:6379": redis_url,
        "https://app.example.com": f"http://127.0.0.1:{port}",
        "localhost:8000": f"127.0.0.1:{port}",
        "--port 8000": f"--port {port}",
    }
    async with Origin.serving("127.0.0.217", by_path({"/a.bin": ok(b"body")})) as origin:
        recipe = Recipe("Service with a webhook", tmp_path, origin, **replaced)
        secret, worker, service, order, show = recipe.commands
        assert 0 == (await recipe.run(secret)).exit_code
        async with recipe.running(worker), recipe.running(service):
            await wait_until(lambda: "Uvicorn running on" in recipe.text("running.txt"), "the app", 30)
            ordered = await recipe.run(order)
            forged = await recipe.run(forgery(port))
            invalid = await recipe.run(order.replace("http://", "ftp://"))

            async def ended() -> Ended | None:
                shown = await recipe.run(show)
                return None if "null" in shown.output else shown

            shown = await wait_until(ended, "the webhook", 30)
    assert shown is not None

    assert ordered.has(recipe.shown[0])
    assert shown.has(recipe.shown[1])
    assert "not signed by the fleet" in forged.output
    assert "url: not an http or https URL" in invalid.output


def forgery(port: int) -> str:
    """Return the command that sends the service a webhook signed with another secret."""
    now, body = dt.datetime.now(dt.UTC), json.dumps({"data": {"batch": "0" * 16}})
    signature = Webhook("whsec_" + base64.b64encode(b"o" * 32).decode()).sign("one", now, body)
    fields = {"id": "one", "timestamp": str(int(now.timestamp())), "signature": signature}
    headers = " ".join(f"-H 'webhook-{name}: {value}'" for name, value in fields.items())
    return f"curl -sS 127.0.0.1:{port}/hooks/fetchfleet {headers} -d '{body}'"
