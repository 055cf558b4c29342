"""An object sink whose process is killed at a chosen request to its store.

The driver forks a process for each body. It reads orders from standard input and prints how each process
ended, both as lines of JSON.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fetchfleet.worker.sink.objects import upload
from fetchfleet.worker.sink.objects.sink import ObjectSink
from fetchfleet.worker.util import object_url
from tests.support.disks import some_bytes, store_body
from tests.support.forked_child import is_killed
from tests.support.object_store import Bucket, ObjectServer

ROOT = Path(__file__).parents[2]
DEST = "folder/a"
_UNIT = some_bytes(1_000_003)


def some_body(size_bytes: int) -> bytes:
    """Return a body whose parts differ."""
    return (_UNIT * (size_bytes // len(_UNIT) + 1))[:size_bytes]


class KilledUpload:
    """The driver."""

    def __init__(self, driver: "subprocess.Popen[str]") -> None:
        self._driver = driver

    def __call__(
        self, bucket: Bucket, spool: Path, size_bytes: int, if_exists: str, at: int | None, *, after: bool
    ) -> bool:
        """Store a body at DEST. Returns whether the process was killed.

        at: the request to be killed at, from 0; None: never. after: the store has done the request.
        """
        assert self._driver.stdin
        assert self._driver.stdout
        order = [bucket.server.url, bucket.name, str(spool), size_bytes, if_exists, at, after]
        self._driver.stdin.write(json.dumps(order) + "\n")
        self._driver.stdin.flush()
        killed: bool = json.loads(self._driver.stdout.readline())
        return killed


@contextmanager
def driver(server: ObjectServer) -> Iterator[KilledUpload]:
    """Run the driver for the length of the block."""
    command = [sys.executable, "-m", "tests.support.killed_upload"]
    environment, pipe = {**os.environ, **server.environment}, subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdin=pipe, stdout=pipe) as process:
        yield KilledUpload(process)


def _run(server: str, name: str, spool: str, size_bytes: int, if_exists: str, at: Any, after: Any) -> None:
    """Store a body, and be killed by the server."""
    bucket = Bucket(ObjectServer(server), name)
    # The S3 API requires parts of 5 MiB.
    upload.PUT_BYTES, upload.PART_BYTES = 1 << 20, 5 << 20
    sink = ObjectSink(object_url.parse(bucket.url), Path(spool))
    sink.open()
    if at is not None:
        requests = f"^(PUT|POST) /{bucket.name}/(?!.*fetchfleet)"
        bucket.server.kill(os.getpid(), requests, skip=at, after=after)
    asyncio.run(store_body(sink, some_body(size_bytes), DEST, if_exists=if_exists))


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(is_killed(partial(_run, *json.loads(line)))), flush=True)  # noqa: T201
