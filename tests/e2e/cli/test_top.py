"""`fetchfleet top` as a process on a terminal, and its refusals."""

import asyncio
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from contextlib import suppress

import pytest
from typer.testing import CliRunner

from fetchfleet import Fleet
from fetchfleet.worker.cli.app import app
from fetchfleet.worker.cli.live import top
from fetchfleet.worker.errors import BAD_USE
from tests.support.fork_server import COMMAND, Process
from tests.support.workers import fetchfleet

ENTER_SCREEN, LEAVE_SCREEN = b"\x1b[?1049h", b"\x1b[?1049l"
"""The sequences that select the second screen of a terminal, and the first one again."""


async def read_until(terminal: int, text: bytes) -> bytes:
    """Read what is written to the terminal, up to a text or the end."""
    received = b""
    with suppress(OSError):  # Linux reports the end of the last process as EIO
        while text not in received:
            received += await asyncio.to_thread(os.read, terminal, 65536)
    return received


async def test_top_shows_the_fleet_and_leaves_the_terminal_as_it_was(redis_url: str) -> None:
    """The key q ends it with 0."""
    async with Fleet(redis_url) as fleet:
        await fleet.submit(["http://a.example/"])
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(theirs)
    environment = {**os.environ, "TERM": "xterm-256color", "FETCHFLEET_REDIS_URL": redis_url}
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    process = Process(COMMAND, "top", env=environment, **streams)
    try:
        shown = await read_until(ours, b"a.example")
        os.write(ours, b"q")
        shown += await read_until(ours, LEAVE_SCREEN)
        code = await asyncio.to_thread(process.wait, 20)
        after = termios.tcgetattr(theirs)
    finally:
        process.kill()
        os.close(ours)
        os.close(theirs)

    assert (0, before) == (code, after)
    assert shown.index(ENTER_SCREEN) < shown.index(b"a.example") < shown.index(LEAVE_SCREEN)


def test_top_without_a_terminal_names_the_command_to_use() -> None:
    """As when its output is piped."""
    ended = fetchfleet("top")

    assert BAD_USE == ended.returncode
    assert "fetchfleet status --watch" in ended.stderr


def test_top_without_its_extra_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker needs no textual."""
    monkeypatch.setattr(top, "is_terminal", lambda: True)
    monkeypatch.setitem(sys.modules, "textual", None)

    ended = CliRunner().invoke(app, ["top"])

    assert BAD_USE == ended.exception.exit_code  # type: ignore[union-attr]
    assert "pip install 'fetchfleet[console]'" in str(ended.exception)


def test_other_commands_do_not_load_textual() -> None:
    """Nor does the help of top: it takes as long as a hundred fetches."""
    modules = "fetchfleet.worker.cli.app, fetchfleet.worker.cli.live.top, fetchfleet.worker.runtime.build"
    code = f"import sys, {modules}; sys.exit('textual' in sys.modules)"

    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode
