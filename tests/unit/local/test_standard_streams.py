"""Standard streams that are closed, full or without a reader."""

import io
import itertools
import os
import subprocess
import sys

import pytest
import typer

from fetchfleet.worker.cli.common import echo, print_json
from fetchfleet.worker.errors import FAILED, CommandError

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
def test_closed_descriptors_are_opened_before_a_socket_can_get_their_numbers(closed: set[int]) -> None:
    """The process and its children read empty input, and their output is dropped."""
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
    ("arguments", "redirection", "code", "message"),
    [
        ("run missing", "2>/dev/full", 2, ""),
        ("run missing", "2>&1 | true; exit ${PIPESTATUS[0]}", 2, ""),
        ("--help", ">/dev/full", 1, "standard output: No space left on device\n"),
        ("run /dev/null --lines-to -", ">&-", 2, "--lines-to -: standard output is closed\n"),
        ("run -", "<&-", 2, "-: no fetches; give a URL or a JSON object on each line\n"),
    ],
)
def test_an_output_that_cannot_be_written_changes_no_other_exit_code(
    arguments: str, redirection: str, code: int, message: str
) -> None:
    """An error of standard output is named. Messages that cannot be shown are dropped."""
    command = f"'{sys.executable}' -m fetchfleet.worker {arguments} {redirection}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)

    assert (code, message) == (ended.returncode, ended.stderr)


def written_to(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redirect standard output to that descriptor, and print enough to fill its buffers."""
    with io.TextIOWrapper(io.FileIO(descriptor, "w"), write_through=True) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        echo("x" * 100)
        print_json({"x": 1}, pretty=True)


def test_a_command_without_a_reader_ends_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe to `head` has this effect, and the exit code still reports a failure."""
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(typer.Exit) as ended:
        written_to(writer, monkeypatch)
    assert FAILED == ended.value.exit_code


def test_a_full_standard_output_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is not reported as one of Redis."""
    with pytest.raises(CommandError, match=r"^standard output: No space left on device$"):
        written_to(os.open("/dev/full", os.O_WRONLY), monkeypatch)
