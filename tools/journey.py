"""List the files of jobs/ and worker/ whose functions one fetch calls, in order.

    python -m tools.journey          in a worker, while it holds the lane
    python -m tools.journey --run    in the command and the worker of a one-URL `fetchfleet run`

Timers of a worker can fire during a fetch, so a file counts only if each of several fetches enters it. Each
fetch is the first of its host. A fetch before them warms the worker up.
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
"""The function that starts the journey in a worker, which has just acquired the lane."""
CO_NEWLOCALS = 0x02  # of functions, not of module and class bodies

Journey = dict[str, str]
"""Files in the order in which they were entered, each with the function that was called first."""


class Recorder:
    """Records the files that are entered by this thread, and by threads that start after `installed`."""

    def __init__(self) -> None:
        self.entered: Journey = {}
        self._files: dict[CodeType, str] = {}
        self._recording = False
        self._starts_at = ""

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Profile this thread, and every thread that starts, during the block."""
        threading.setprofile(self._on_event)
        sys.setprofile(self._on_event)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def start(self, starts_at: str = "") -> None:
        """Start to record at once, or with the next call of a function. starts_at: its qualified name."""
        self.entered = {}
        self._starts_at = starts_at
        self._recording = True

    def stop(self) -> Journey:
        """Stop recording; return the files that were entered since the start."""
        self._recording = False
        return self.entered

    def _on_event(self, frame: FrameType, event: str, _: Any) -> None:
        if self._recording and event == "call" and not is_resumed(frame):
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
    """Return whether a coroutine or generator continues in the frame, rather than a function that is called.

    The low bits of the RESUME instruction's argument are 0 at the start of a function (see the dis module).
    """
    return bool(frame.f_code.co_code[frame.f_lasti + 1] & 3)


def file_of(code: CodeType) -> str:
    """Return the path of a function's file, relative to the project; '' for other code.

    Annotations of classes do not count. Since Python 3.14, reading them calls a function.
    """
    if (
        code.co_name == "__annotate__"
        or not code.co_flags & CO_NEWLOCALS
        or not code.co_filename.startswith(PACKAGES)
    ):
        return ""
    return code.co_filename.removeprefix(f"{ROOT}/").removeprefix("fetchfleet/")


def worker_journey(folder: Path) -> Journey:
    """Return the files that a plain GET enters in a worker that is already running."""
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
    """Return the behaviour of each host, by address."""
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
    """Return the files that the command process of a one-URL `fetchfleet run` enters."""
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
    """Run the `fetchfleet` command with these arguments; write the files that it enters as JSON."""
    recorder = Recorder()
    recorder.start()
    try:
        with recorder.installed():
            sys.argv[1:] = arguments
            import_module("fetchfleet.worker.cli.app").run_command()
    finally:
        recorded.write_text(json.dumps(recorder.stop()))


def show(heading: str, journey: Journey) -> None:
    """Print a journey under a heading."""
    print(f"{heading}: {len(journey)} files")
    for file, function in journey.items():
        print(f"  {file:<48} {function}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.journey", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--run", action="store_true", help="list the files of a one-URL `fetchfleet run`: command and worker"
    )
    parser.add_argument("--record", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.record:
        record(Path(options.record[0]), options.record[1:])
        return
    with tempfile.TemporaryDirectory() as name:
        worker = worker_journey(Path(name))
        show("in the worker", worker)
        if options.run:
            command = command_journey(Path(name))
            show("in the command", command)
            print(f"in both: {len(command.keys() | worker.keys())} files")


if __name__ == "__main__":
    main()
