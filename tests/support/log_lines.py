"""Checks of log lines: each must fit the registry of events (worker/observability/registry)."""

import json
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import structlog.testing
from hypothesis import strategies as st

from fetchfleet.worker.observability.registry.event_schemas import LINE_DECODER

_ENCODER = msgspec.json.Encoder(enc_hook=str)
_BEGINS = b'{"'


def assert_registered(lines: Iterable[str | bytes]) -> None:
    """Check lines of JSON. Other lines, and those that a killed worker has not finished, are not checked."""
    wrong = []
    for line in lines:
        try:
            LINE_DECODER.decode(line)
        except msgspec.ValidationError as error:
            wrong.append(f"{error}: {line!r}")
        except msgspec.DecodeError:
            continue
    assert not wrong, "log lines that do not fit worker/observability/registry:\n" + "\n".join(wrong[:10])


def assert_all_registered(captured: Iterable[MutableMapping[str, Any]]) -> None:
    """Check captured lines. They have no timestamp, and a logger of a test may have no worker."""
    lines: list[dict[str, Any]] = [{"timestamp": "", "worker": "", **line} for line in captured]
    for line in lines:
        line["level"] = line.pop("log_level")
    assert_registered(map(_ENCODER.encode, lines))


def assert_logs_registered(folder: Path) -> None:
    """Check the log files of workers in a folder and below it."""
    for path in folder.rglob("*.log"):
        with path.open("rb") as file:
            assert_registered(line for line in file if line.startswith(_BEGINS))


@contextmanager
def capture_logs() -> Iterator[list[Any]]:
    """Capture the lines of a block as dicts, and check them at its end."""
    with structlog.testing.capture_logs() as captured:
        yield captured
    assert_all_registered(captured)


@cache
def field_values(type_: Any) -> st.SearchStrategy[Any]:
    """Return values of the type of a field that JSON can represent: finite numbers, integers of 64 bits."""
    return st.from_type(type_).filter(_is_json)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
        msgspec.json.encode(value)
    except (ValueError, OverflowError):
        return False
    return True
