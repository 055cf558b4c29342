"""Standard streams that are closed, full or without a reader."""

import itertools
import subprocess
import sys

import pytest

PROGRAM = """
import os, socket, sys
from fetchfleet.worker.local.process import closed_at_start, open_standard_streams
open_standard_streams()
number = socket.socket().detach()
sys.stdin.read(), print("printed"), print("printed", file=sys.stderr)
child = os.spawnv(os.P_WAIT, "/bin/sh", ["sh", "-c", "read line; echo >&1 && echo >&2"])
sys.exit(100 + 10 * child + number if number < 3 or child else sum(1 << n for n in closed_at_start))
"""
CLOSING = ("<&-", ">&-", "2>&-")


@pytest.mark.parametrize(
    "closed", [set(some) for count in range(4) for some in itertools.combinations(range(3), count)], ids=str
)
def test_closed_descriptors_are_open_before_a_socket_could_get_one(closed: set[int]) -> None:
    """Of this process and of its children; what is read is empty, what is printed is dropped."""
    redirections = " ".join(CLOSING[number] for number in closed)
    command = f'exec "$0" -c "$1" {redirections}'
    ended = subprocess.run(
        ["/bin/sh", "-c", command, sys.executable, PROGRAM],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )

    assert (sum(1 << number for number in closed), b"") == (
        ended.returncode,
        ended.stderr.replace(b"printed", b"").strip(),
    )
    assert (1 in closed) == (ended.stdout == b"")


@pytest.mark.parametrize(
    ("arguments", "redirection", "code", "said"),
    [
        ("run missing", "2>/dev/full", 2, ""),
        ("run missing", "2>&1 | true; exit ${PIPESTATUS[0]}", 2, ""),
        ("--help", ">/dev/full", 1, "standard output: No space left on device\n"),
        ("run /dev/null --lines-to -", ">&-", 2, "--lines-to -: standard output is closed\n"),
        ("run -", "<&-", 2, "-: holds no fetch; give a URL or a JSON object a line\n"),
    ],
)
def test_an_output_that_cannot_be_written_changes_no_other_exit_code(
    arguments: str, redirection: str, code: int, said: str
) -> None:
    """An error of standard output is named; messages that cannot be shown are dropped."""
    command = f"'{sys.executable}' -m fetchfleet.worker {arguments} {redirection}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)

    assert (code, said) == (ended.returncode, ended.stderr)
