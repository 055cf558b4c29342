"""Runs a function in a forked child process, which may be killed."""

import os
import signal
import sys
import traceback
from collections.abc import Callable


def is_killed(run: Callable[[], object]) -> bool:
    """Run the function in a child. Return whether SIGKILL ended it; any other end but success is an error."""
    child = os.fork()
    if child == 0:
        try:
            run()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the child must not continue as the parent
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    killed = os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL if killed else status == 0, "its traceback is on stderr"
    return killed
