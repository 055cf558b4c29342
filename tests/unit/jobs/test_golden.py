"""Data of earlier releases, and of other programs for them, are read as they were then."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fetchfleet import __version__
from fetchfleet.jobs.contract.entry import parse_entry
from fetchfleet.jobs.contract.fetch import decode_fetch
from fetchfleet.jobs.contract.messages import Order, read_arguments, read_message
from fetchfleet.jobs.contract.result import decode_result
from fetchfleet.worker.intake.arq_jobs import FETCH, read_job

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden"


def read_arq_job(text: bytes) -> Order:
    """Return the order of a job as arq stored it."""
    job = read_job(frozenset({FETCH}), text)
    return read_arguments(*job["a"], **job["k"])


READERS: dict[str, Callable[[bytes], Any]] = {
    "fetches": decode_fetch,
    "messages": read_message,
    "jobs": read_arq_job,
    "elements": parse_entry,
    "results": decode_result,
}


def plain(value: Any) -> Any:
    """Return every field as JSON has it, defaults included."""
    match value:
        case msgspec.Struct():
            return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
        case list() | tuple():
            return [plain(item) for item in value]
        case dict():
            return {name: plain(item) for name, item in value.items()}
        case _:
            return msgspec.to_builtins(value)


def same(then: Any, now: Any) -> Any:
    """Return the present form without fields that were unknown then."""
    if isinstance(then, dict) and isinstance(now, dict):
        return {name: same(item, now[name]) for name, item in then.items() if name in now}
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [same(one, other) for one, other in zip(then, now, strict=True)]
    return now


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("folder", sorted(path.name for path in GOLDEN.iterdir() if path.is_dir()))
def test_data_of_each_release_are_read_unchanged(folder: str, kind: str) -> None:
    """Line by line, each field with its value."""
    lines = [json.loads(line) for line in (GOLDEN / folder / f"{kind}.jsonl").read_text().splitlines()]
    for line in lines:
        now = plain(READERS[kind](line["given"].encode()))
        assert line["read"] == same(line["read"], now)

    assert len(lines) >= 5


def test_each_release_has_its_folder() -> None:
    """The folder of this release exists, and the package has the installed version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert version == __version__
    assert (GOLDEN / ".".join(version.split(".")[:2])).is_dir()
