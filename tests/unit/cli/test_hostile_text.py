"""Hostile text in every field that a command, a log or a report shows."""

import enum
import io
import json
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest
from rich.console import RenderableType

from fetchfleet import Fetch
from fetchfleet.jobs.client.batch import Counts
from fetchfleet.jobs.client.batch_list import BatchSummary
from fetchfleet.jobs.client.dead_letters import DeadLetter
from fetchfleet.jobs.contract.result import Result
from fetchfleet.jobs.contract.safe_text import UNSAFE
from fetchfleet.worker.cli import common, render
from fetchfleet.worker.inspect.explain import FetchExplained, LaneExplained
from fetchfleet.worker.inspect.fleet_status import FleetStatus
from fetchfleet.worker.inspect.policy_in_force import Origin, PolicyInForce, WorkersPolicies
from fetchfleet.worker.inspect.snapshot import LaneSnapshot
from fetchfleet.worker.lanes.reset import LaneReset
from fetchfleet.worker.local.lists.rejects import encoded
from fetchfleet.worker.local.output.progress import (
    BatchProgress,
    SafeConsole,
    live_view,
    progress_line,
    summary,
)
from fetchfleet.worker.local.run_record import Tally
from fetchfleet.worker.observability import log, redact
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.pauses import Overrides, Pauses

READABLE = "[red]d[/red][link=u]e[/link]:bomb:"
HOSTILE = f"a\x1b[31m\x9b2J\x07\x7f\u202ec\u2066\u2028\u200f\ufeff\U000e0041\ud800\r\n{READABLE}"

PROGRESS = BatchProgress(
    Counts(total=9), [LaneSnapshot(HOSTILE, 1, 1, HOSTILE, 1.0)], 1.0, 1.0, 1.0, [HOSTILE], [(HOSTILE, 1)]
)


def filled(kind: Any) -> Any:
    """Return a value of a type with hostile text wherever it may have text."""
    origin, of = get_origin(kind), get_args(kind)
    if kind in SAMPLES:
        return SAMPLES[kind]
    if origin in {typing.Union, types.UnionType}:
        return filled(next(one for one in of if one is not type(None)))
    if origin is not None:
        mapping = issubclass(origin, dict | Mapping)
        return {filled(of[0]): filled(of[1])} if mapping else [filled(of[0])]
    if issubclass(kind, enum.Enum):
        return next(iter(kind))
    if issubclass(kind, msgspec.Struct) or hasattr(kind, "_fields"):
        return kind(**{name: filled(one) for name, one in get_type_hints(kind).items()})
    return kind(7)


def hostile_fetch() -> Fetch:
    """Return a fetch that no check has seen, as its door may have kept it."""
    fetch = Fetch(url="http://a.example/")
    for name, of in get_type_hints(Fetch).items():
        if of in {str, str | None, Any}:
            msgspec.structs.force_setattr(fetch, name, filled(of))
    return fetch


SAMPLES: dict[Any, Any] = {
    str: HOSTILE,
    Any: {HOSTILE: [HOSTILE]},
    Policy: Policy(),
    tuple[str, str]: (HOSTILE,) * 2,
}
SAMPLES[Fetch] = hostile_fetch()
FLEET, LANE, FETCH = filled(FleetStatus), filled(LaneExplained), filled(FetchExplained)
RESULT, LETTER, SUMMARY = filled(Result), filled(DeadLetter), filled(BatchSummary)
TABLES = {HOSTILE: {"burst": HOSTILE, HOSTILE: HOSTILE}}
IN_FORCE = PolicyInForce(
    Origin.WORKERS,
    HOSTILE,
    Policy(),
    Policy(tables={HOSTILE: {"burst": 2}}),
    Overrides({HOSTILE: {"burst": 2}}, {}),
    filled(WorkersPolicies)._replace(files={}),
    HOSTILE,
    HOSTILE,
)


def written(shown: RenderableType, *, terminal: bool = False) -> str:
    """Return what a screen shows of something."""
    screen = SafeConsole(file=io.StringIO(), width=1000, force_terminal=terminal, color_system=None)
    screen.print(shown)
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def ended() -> Tally:
    """Return a tally of one hostile result."""
    tally = Tally()
    tally.ends[HOSTILE, HOSTILE] = 1
    return tally


@pytest.mark.parametrize(
    "shown",
    [
        HOSTILE,
        render.status_of(FLEET),
        render.batches_of([SUMMARY], 7),
        render.dead_of([LETTER]),
        render.dead_of([LETTER], reveal=True),
        render.policy_of(IN_FORCE, HOSTILE),
        render.pauses_of(Pauses({HOSTILE: 7}, {HOSTILE: 7}, (), {})),
        live_view(PROGRESS, 40),
        summary(Counts(), ended(), 1.0),
    ],
)
def test_no_table_shows_an_unsafe_character_or_obeys_markup(shown: RenderableType) -> None:
    """A cell stays one line, and a tag is text."""
    plain, on_terminal = written(shown), written(shown, terminal=True)

    for text in (plain, on_terminal):
        assert not UNSAFE.search(text.replace("\n", ""))
        assert "💣" not in text
    if "\\u202e" in plain:
        assert READABLE in plain


@pytest.mark.parametrize(
    "lines",
    [
        [render.result_line(RESULT)],
        [render.result_line(RESULT, reveal=True)],
        [*render.fetch_lines(FETCH)],
        [*render.lane_lines(LANE)],
        [*render.policy_lines(IN_FORCE, HOSTILE)],
        [render.reset_line(filled(LaneReset))],
        [progress_line(PROGRESS)],
    ],
)
def test_no_line_of_a_command_has_an_unsafe_character(
    lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Text with a line end does not begin another line."""
    for line in lines:
        common.echo(line)
    shown = capsys.readouterr().out

    assert not UNSAFE.search(shown.replace("\n", ""))
    assert shown.count("\n") == len(lines)
    assert "\\u202e" in shown


@pytest.mark.parametrize("value", [FLEET, LANE, FETCH, RESULT, LETTER, SUMMARY, TABLES, {HOSTILE: HOSTILE}])
@pytest.mark.parametrize("pretty", [False, True])
def test_no_json_of_a_command_has_an_unsafe_character(
    value: Any,
    pretty: bool,  # noqa: FBT001 a parameter of the test
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its value is the stored one, unless a secret is hidden."""
    whole = json.loads(json.dumps(msgspec.to_builtins(value)).replace("\\ud800", ""))
    common.print_json(whole, pretty=pretty, reveal=True)
    revealed = capsys.readouterr().out
    common.print_json(whole, pretty=pretty)
    common.print_json(whole, pretty=pretty, hide=redact.result)
    shown = capsys.readouterr().out

    assert not UNSAFE.search((revealed + shown).replace("\n", ""))
    assert json.loads(revealed) == whole


@pytest.mark.parametrize("pretty", [False, True])
def test_no_log_line_has_an_unsafe_character(
    pretty: bool,  # noqa: FBT001 a parameter of the test
    any_stream: io.StringIO,
) -> None:
    """As JSON it has the value that was logged."""
    text = HOSTILE.replace("\ud800", "")
    log.configure(any_stream, pretty=pretty)
    log.get_logger(lane=text).info("x", url=text, many=[text], nested={text: text})
    line = any_stream.getvalue()

    assert line.count("\n") == 1
    colours = r"\x1b\[[0-9;]*m" if pretty else "(?!)"
    assert not UNSAFE.search(re.sub(colours, "", line).replace("\n", ""))
    if not pretty:
        assert json.loads(line)["nested"] == {text: text}


def test_no_skipped_line_is_written_with_an_unsafe_character() -> None:
    """The file of rejects is read on a terminal too."""
    line = encoded(1, HOSTILE.replace("\ud800", ""), HOSTILE.replace("\ud800", ""))

    assert not UNSAFE.search(line.decode().replace("\n", ""))
    assert json.loads(line)["text"] == HOSTILE.replace("\ud800", "")


def test_a_warning_is_safe(capsys: pytest.CaptureFixture[str]) -> None:
    """It is printed on standard error."""
    common.warn(HOSTILE)
    common.console.print(HOSTILE, style="red", soft_wrap=True)

    assert not UNSAFE.search(capsys.readouterr().err.replace("\n", ""))


def test_every_command_prints_through_the_same_few_functions() -> None:
    """A console, a table or an echo of another kind would show text as it came."""
    printing = re.compile(
        r"\btyper\.(?:secho|echo)\(|(?<!class )\b(?:Console|Table)\(|\bfrom_markup\(|render_markup"
    )
    root = Path(__file__).parents[3] / "worker"
    files = {str(path.relative_to(root)) for path in root.rglob("*.py") if printing.search(path.read_text())}

    # The version, and the names and passwords of Redis users, are generated.
    assert files == {"cli/app.py", "cli/common.py", "cli/users.py"}
