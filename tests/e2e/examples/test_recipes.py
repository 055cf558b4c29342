"""The recipes of docs/recipes.md: their commands and programs, run as the page has them.

Only hosts, the bucket and Redis are replaced by those of the test.
"""

import asyncio
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet

from tests.support.object_store import Bucket
from tests.support.range_server import RangedBody, body_of
from tools.origin.behaviours import by_path, ok, status
from tools.origin.server import Behaviour, Exchange, Header, Origin

PAGE = Path(__file__).parents[3] / "docs" / "recipes.md"
TIMEOUT_S = 90

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
        missing = set(map(_plain, shown)) - set(map(_plain, self.output.splitlines())) - {"…"}
        assert set() == missing, self.output
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
            text = _HOST.sub(origin.url("").rstrip("/"), block)
            for word, replacement in replaced.items():
                text = text.replace(word, replacement)
            if language == "sh":
                self.commands.append(text)
            elif language == "text":
                self.shown.append(text.splitlines())
            elif match := _FILE.match(text):
                (folder / match[1]).write_text(text)

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


def _plain(line: str) -> str:
    return " ".join(_DURATION.sub(" in … s", line).split())


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
