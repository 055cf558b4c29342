"""The progress of the check of a list, on a terminal only."""

import io
import re
from itertools import count, groupby
from pathlib import Path

import pytest

from fetchfleet.worker.cli import common
from fetchfleet.worker.local.lists.dry_run import HostCounts
from fetchfleet.worker.local.output import check_progress
from fetchfleet.worker.local.output.check_progress import LOOK_EVERY, shown_while_checked
from fetchfleet.worker.local.output.output_files import Outputs
from fetchfleet.worker.local.output.progress import SafeConsole
from fetchfleet.worker.policy.file import Policy


def screen_of(*, terminal: bool) -> SafeConsole:
    """Return a console that writes to memory."""
    return SafeConsole(file=io.StringIO(), force_terminal=terminal, color_system=None)


def text_of(console: SafeConsole) -> str:
    """Return what the console shows."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_the_number_of_checked_fetches(*, terminal: bool) -> None:
    """At most twice a second. Another pass counts from zero. The hosts get each URL in any case."""
    hosts, console, clock = HostCounts(), screen_of(terminal=terminal), count(0, 0.25)
    with shown_while_checked(hosts, console, lambda: next(clock)) as receiver:
        for _ in range(2):
            receiver.clear()
            for _ in range(4 * LOOK_EVERY):
                receiver.add("http://a.example/")

    shown = [number for number, _ in groupby(re.findall(r"([0-9,]+) fetches checked", text_of(console)))]
    assert (["2,000", "4,000"] * 2 if terminal else []) == shown
    assert hosts.total == 4 * LOOK_EVERY


@pytest.mark.parametrize("terminal", [True, False])
def test_a_dry_run_shows_progress_on_a_terminal(
    *,
    terminal: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On standard error. The report is the same without one."""
    listed = tmp_path / "urls.txt"
    listed.write_text("".join(f"http://a.example/{place}\n" for place in range(2 * LOOK_EVERY)))
    console = screen_of(terminal=terminal)
    monkeypatch.setattr(common, "console", console)
    monkeypatch.setattr(check_progress, "SHOW_EVERY_S", 0.0)
    common.print_dry_run(str(listed), None, Outputs(lambda: console), [], {}, Policy())

    assert ("2,000 fetches checked" in text_of(console)) is terminal
    assert "2,000 fetches; nothing was enqueued (dry run)" in capsys.readouterr().out
