"""Sample the main thread with SIGPROF, whose timer counts CPU time.

Each sample adds the thread's CPU time since the last sample to the subsystem of the running code. Waiting is
not counted. A sampling thread would favour code that releases the GIL. Other threads are not sampled: their
CPU time is counted by thread name.
"""

import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Self

EVERY_S = 0.001


class Sampler:
    """A context that samples: `spent_s` by subsystem, `detail_s` by function, `threads_s` by thread name."""

    def __init__(self, room_of: Callable[[Iterable[str]], str]) -> None:
        self.spent_s: defaultdict[str, float] = defaultdict(float)
        self.detail_s: defaultdict[str, float] = defaultdict(float)
        self.threads_s: defaultdict[str, float] = defaultdict(float)
        self._room_of = room_of
        self._before_s = 0.0

    def __enter__(self) -> Self:
        self._handler = signal.signal(signal.SIGPROF, self._sample)
        signal.siginterrupt(signal.SIGPROF, False)  # noqa: FBT003 positional only
        self._before_s = time.thread_time()
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, self._handler)
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        for task in Path("/proc/self/task").iterdir():
            native_id = int(task.name)
            if native_id != threading.main_thread().native_id:
                self.threads_s[names.get(native_id) or _kernel_name(task)] += _used_s(native_id)

    def _sample(self, _signal: int, frame: FrameType | None) -> None:
        now_s = time.thread_time()
        used_s, self._before_s = now_s - self._before_s, now_s
        room = self._room_of(_files(frame))
        self.spent_s[room] += used_s
        if frame is not None:
            self.detail_s[f"{room} {_name(frame)}"] += used_s


def _kernel_name(task: Path) -> str:
    """Return the kernel's name of a thread that Python did not start."""
    with suppress(OSError):
        return (task / "comm").read_text().strip()
    return ""


def _used_s(native_id: int) -> float:
    """Return the CPU time of the thread, read from its clock on Linux (clock_gettime(2))."""
    try:
        return time.clock_gettime(~native_id << 3 | 6)
    except OSError:
        return 0.0


def _files(frame: FrameType | None) -> Iterator[str]:
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back


def _name(frame: FrameType) -> str:
    return f"{'/'.join(frame.f_code.co_filename.split('/')[-2:])}:{frame.f_code.co_name}"
