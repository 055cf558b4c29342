"""List the files of jobs/ and worker/ whose functions one fetch calls, in order.

    python -m tools.journey          in a worker, while it holds the lane
    python -m tools.journey --run    in the command and the worker of a one-URL `fetchfleet run`

Timers of a worker fire at any moment, so a file counts only if each of several fetches enters it. Each fetch
is the first of its host; one fetch before them warms the worker up.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from fetchfleet import Fetch, Fleet, Outcome
from fetchfleet.worker.local.embedded_redis import EmbeddedRedis
from fetchfleet.worker.observability import log
from tools.one_worker import OneWorker
from tools.origin.behaviours import ok
from tools.origin.process import origins_in_child
from tools.origin.server import Behaviour

ROOT = Path(__file__).parents[1]
PACKAGES = (f"{ROOT}/fetchfleet/", f"{ROOT}/jobs/", f"{ROOT}/worker/")
FETCHES = 5
LANE_HELD = "LiveLanes.begin"
"""The function at which the journey in a worker starts: the worker holds the lane from here on."""
IN_A_FUNCTION = 0x02  # CO_NEWLOCALS: a module's or a class's own code lacks it

Journey = dict[str, str]
"""The files in the order in which they were entered, each with the function that was called first."""


class Recorder:
    """Notes which files are entered while it records, in all threads that start after it."""

    def __init__(self) -> None:
        self.entered: Journey = {}
        self._files: dict[CodeType, str] = {}
        self._records = False
        self._starts_at = ""

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Profile this thread, and every thread that it starts, for the length of the block."""
        threading.setprofile(self._on_event)
        sys.setprofile(self._on_event)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def start(self, starts_at: str = "") -> None:
        """Record from here on, or from the next call of a function, given by its qualified name."""
        self.entered = {}
        self._starts_at = starts_at
        self._records = True

    def stop(self) -> Journey:
        """Record no more; return what was entered since the start."""
        self._records = False
        return self.entered

    def _on_event(self, frame: FrameType, event: str, _: Any) -> None:
        if self._records and event == "call" and not is_resumed(frame):
            code = frame.f_code
            if self._starts_at and code.co_qualname != self._starts_at:
                return
            self._starts_at = ""
            file = self._files.get(code)
            if file is None:
                file = self._files[code] = file_of(code)
            if file:
                self.entered.setdefault(file, code.co_name)


def is_resumed(frame: FrameType) -> bool:
    """Return whether the frame is a coroutine or generator that goes on, not a function that is called.

    The low bits of the RESUME instruction's argument are 0 at the start of a function (see the dis module).
    """
    return bool(frame.f_code.co_code[frame.f_lasti + 1] & 3)


def file_of(code: CodeType) -> str:
    """Return the path in the project of a function of this project, else an empty string.

    A class's annotations do not count, although reading them calls a function from Python 3.14 on.
    """
    if (
        code.co_name == "__annotate__"
        or not code.co_flags & IN_A_FUNCTION
        or not code.co_filename.startswith(PACKAGES)
    ):
        return ""
    return code.co_filename.removeprefix(f"{ROOT}/").removeprefix("fetchfleet/")


def worker_journey(folder: Path) -> Journey:
    """Return what a plain GET enters in a worker that is already running."""
    recorder = Recorder()
    with (
        (folder / "log").open("w") as lines,
        EmbeddedRedis(folder / "redis") as redis,
        origins_in_child(hosts) as origins,
        recorder.installed(),
    ):
        log.configure(lines)
        return asyncio.run(_fetch_each(list(origins.urls.values()), redis.url, folder, recorder))


def hosts() -> dict[str, Behaviour]:
    """Return the hosts of the fetches, each with its behaviour."""
    return {f"127.0.0.{number}": ok(b"x" * 10_000) for number in range(101, 101 + FETCHES)}


async def _fetch_each(urls: list[str], redis_url: str, folder: Path, recorder: Recorder) -> Journey:
    journeys = []
    async with OneWorker(redis_url, folder / "bodies") as worker:
        for url in urls:
            recorder.start(LANE_HELD)
            await asyncio.to_thread(_fetch_unprofiled, redis_url, url)
            while worker.runtime.lanes:  # noqa: ASYNC110 the log line and the release follow the result
                await asyncio.sleep(0.01)
            journeys.append(recorder.stop())
    return {
        file: function
        for file, function in journeys[1].items()
        if all(file in journey for journey in journeys[2:])
    }


def _fetch_unprofiled(redis_url: str, url: str) -> None:
    sys.setprofile(None)  # the producer is not part of the worker
    asyncio.run(_fetch(redis_url, url))


async def _fetch(redis_url: str, url: str) -> None:
    async with Fleet(redis_url) as fleet:
        batch = await fleet.submit([Fetch(url=url)])
        async for result in batch.results():
            if result.outcome is not Outcome.STORED:
                raise RuntimeError(f"the fetch ended as {result.outcome}: {result.reason}")


def command_journey(folder: Path) -> Journey:
    """Return what the command process of a one-URL `fetchfleet run` enters."""
    recorded = folder / "command.json"
    with origins_in_child(hosts) as origins:
        (folder / "urls.txt").write_text(next(iter(origins.urls.values())))
        command = [
            "run",
            str(folder / "urls.txt"),
            "--out",
            str(folder / "run"),
            "--allow-net",
            "127.0.0.0/8",
        ]
        subprocess.run(
            [sys.executable, "-m", "tools.journey", "--record", str(recorded), *command],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
    entered: Journey = json.loads(recorded.read_text())
    return entered


def record(recorded: Path, arguments: list[str]) -> None:
    """Be the `fetchfleet` command with these arguments; write what it enters to a file."""
    recorder = Recorder()
    recorder.start()
    try:
        with recorder.installed():
            sys.argv[1:] = arguments
            import_module("fetchfleet.worker.cli.app").run_command()
    finally:
        recorded.write_text(json.dumps(recorder.stop()))


def show(heading: str, journey: Journey) -> None:
    """Print the files in order, each with the function that was called first."""
    print(f"{heading}: {len(journey)} files")
    for file, function in journey.items():
        print(f"  {file:<48} {function}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.journey", description=__doc__.partition("\n")[0])
    parser.add_argument("--run", action="store_true", help="the command and the worker of a one-URL run")
    parser.add_argument("--record", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.record:
        record(Path(given.record[0]), given.record[1:])
        return
    with tempfile.TemporaryDirectory() as name:
        worker = worker_journey(Path(name))
        show("in the worker", worker)
        if given.run:
            command = command_journey(Path(name))
            show("in the command", command)
            print(f"in both: {len(command.keys() | worker.keys())} files")


if __name__ == "__main__":
    main()
