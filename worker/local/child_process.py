"""Child processes: they end with us, and their end is noticed at once."""

import ctypes
import signal
import subprocess
import sys
from threading import Thread
from typing import Any

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """For preexec_fn: the child is told to end when its parent is gone, however it went (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def await_end(child: "subprocess.Popen[Any]", timeout_s: float) -> None:
    """Return when it has ended; killed if it has not within timeout_s."""
    # Popen.wait with a timeout looks at ever longer intervals; without one it is told.
    waiting = Thread(target=child.wait, daemon=True)
    waiting.start()
    waiting.join(timeout_s)
    if waiting.is_alive():
        child.kill()
        waiting.join()
