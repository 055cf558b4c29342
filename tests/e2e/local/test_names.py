"""`run --name` and `run --if-exists`, as a user types them."""

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

from tests.support.workers import fetchfleet
from tools.origin.behaviours import by_path, ok
from tools.origin.server import Origin

LOOPBACK = ("--allow-net", "127.0.0.0/8")


async def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run the command in a thread, so that the loop can serve the origin."""
    return await asyncio.to_thread(fetchfleet, "run", *arguments, *LOOPBACK)


def reported(report: Path) -> list[dict[str, Any]]:
    """Return the results of a report."""
    return [json.loads(line) for line in report.read_text().splitlines()]


def files(out: Path) -> dict[str, bytes]:
    """Return the bodies below the out folder by their path."""
    paths = [path for path in out.rglob("*") if path.is_file() and ".fetchfleet" not in path.parts]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


async def test_a_list_is_stored_by_host_and_file_name(tmp_path: Path) -> None:
    """A fetch with a dest keeps it. With `skip`, a second run stores only the file that is missing."""
    photo = ok(b"photo", [("Content-Type", "image/jpeg")])
    routes = {"/photo": photo, "/d/a.PNG": ok(b"one"), "/e/a.png": ok(b"two"), "/own": ok(b"own")}
    out, report, listed = tmp_path / "out", tmp_path / "report.jsonl", tmp_path / "list"
    async with Origin.serving("127.0.0.168", by_path(routes)) as origin:
        own = json.dumps({"url": origin.url("/own"), "dest": "own.bin"})
        urls = [origin.url(target) for target in ("/photo", "/d/a.PNG", "/e/a.png")]
        listed.write_text("\n".join([*urls, own]))
        options = (listed, "--out", out, "--name", "{host}/{stem}{ext}")
        first = await run(*options, "--report", report, "--concurrency", "1")
        stored = files(out)
        folder = f"127.0.0.168+{origin.port}"
        (out / folder / "photo.jpg").unlink()
        again = await run(*options, "--report", tmp_path / "again.jsonl", "--if-exists", "skip")
    results = {result["url"]: result for result in reported(report)}

    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    suffixed = f"{folder}/a-{results[urls[2]]['id']}.png"
    expected = {
        f"{folder}/photo.jpg": b"photo",
        f"{folder}/a.png": b"one",
        suffixed: b"two",
        "own.bin": b"own",
    }
    assert expected == stored == files(out)
    assert {"{host}/{stem}{ext}", None} == {result["name"] for result in results.values()}
    assert stored == {result["path"]: (out / result["path"]).read_bytes() for result in results.values()}
    kept = {
        result["url"] for result in reported(tmp_path / "again.jsonl") if result["outcome"] == "unchanged"
    }
    assert set(results) - {urls[0]} == kept


def test_a_bad_template_exits_2(tmp_path: Path) -> None:
    """A name for WARC segments does too."""
    listed = tmp_path / "list"
    listed.write_text("http://a.example/")
    bad = fetchfleet("run", listed, "--out", tmp_path / "out", "--name", "{file}")
    warc = fetchfleet("run", listed, "--out", tmp_path / "out", "--name", "{id}", "--sink", "warc")

    assert (bad.returncode, warc.returncode) == (2, 2)
    assert "--name: {file} is not a placeholder" in bad.stderr
    assert "leave it out with --sink warc" in warc.stderr
    assert not (tmp_path / "out").exists()
