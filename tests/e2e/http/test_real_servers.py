"""Thousands of files from nginx and http.server, fetched by two worker processes."""

import hashlib
import shutil
from pathlib import Path

import pytest

from fetchfleet import Fleet, Outcome
from tests.support.waiting import wait_until
from tests.support.workers import workers
from tools.origin.static_server import Kind, serve_folder

HOSTS = [f"127.0.0.{number}" for number in range(101, 121)]
FILES_A_HOST = 100


def make_files(folder: Path) -> dict[str, str]:
    """Write files of many sizes, a folder for each host. Return the SHA-256 of each path."""
    digests = {}
    for number in range(len(HOSTS) * FILES_A_HOST):
        host, place = divmod(number, FILES_A_HOST)
        body = hashlib.sha256(str(number).encode()).digest() * (1 + number * 7 % 1600)
        path = folder / str(host) / f"{place}.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(body)
        digests[f"/{host}/{place}.bin"] = hashlib.sha256(body).hexdigest()
    return digests


@pytest.mark.parametrize("kind", ["nginx", "http.server"])
async def test_two_thousand_files_of_twenty_hosts_are_stored_byte_for_byte(
    kind: Kind, redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """Both workers store some of them."""
    if kind == "nginx" and not shutil.which("nginx"):
        pytest.skip("nginx is not installed; http.server stands in for it")
    files = tmp_path / "files"
    files.mkdir()
    digests = make_files(files)
    with serve_folder(files, HOSTS, kind=kind) as server:
        urls = {server.base_urls[int(path.split("/")[1])] + path: digest for path, digest in digests.items()}
        with workers(2, redis_url, tmp_path / "fleet") as running:
            await wait_until(running.started, "both workers", 60)
            batch = await fleet.submit(urls)
            results = [result async for result in batch.results()]
            on_disk = {
                result.url: hashlib.sha256((running.out / str(result.path)).read_bytes()).hexdigest()
                for result in results
            }

    assert [Outcome.STORED] * len(urls) == [result.outcome for result in results]
    assert urls == on_disk
    assert {"worker-1", "worker-2"} == {result.worker for result in results}
