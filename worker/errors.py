"""How a command ends: its exit codes, and the errors that end it with one sentence."""

FAILED = 1
BAD_USE = 2
INTERRUPTED = 130


class ForeseenError(Exception):
    """Ends a command with its message and `exit_code`; nobody needs to see a traceback."""

    exit_code = FAILED
