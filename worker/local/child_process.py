"""Child processes: they end with their parent, and their end is noticed at once."""

import ctypes
import signal
import subprocess
import sys
from threading import Thread
from typing import Any

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Terminate this process when its parent dies, however it dies. A preexec_fn; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def await_end(child: "subprocess.Popen[Any]", timeout_s: float) -> None:
    """Return when the child has ended; it is killed after timeout_s."""
    # Popen.wait with a timeout polls at growing intervals; without one it blocks in waitpid.
    waiting = Thread(target=child.wait, daemon=True)
    waiting.start()
    waiting.join(timeout_s)
    if waiting.is_alive():
        child.kill()
        waiting.join()
