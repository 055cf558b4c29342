"""Parses `key=value` pairs of a policy table from the command line, and formats values. Pure.

A table may also be written as TOML, as in a policy file: `accept={types = ["image/*"]}`.
"""

import shlex
from collections.abc import Sequence
from typing import Any

import msgspec

from fetchfleet.jobs.contract.checks.accept import Accept
from fetchfleet.worker.policy.model import PolicyError


def parsed(pairs: Sequence[str]) -> dict[str, Any]:
    """Return the values by key. A value is JSON, a TOML table, or else text. Raises PolicyError."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise PolicyError(f"{pair!r} is not KEY=VALUE")
        try:
            values[key] = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            values[key] = _toml_table(text) if text.startswith("{") else text
        if key.startswith(_ACCEPT) and not (key == _ACCEPT and text.startswith("{")):
            _refuse_part_of_accept(key, values[key])
    return values


_ACCEPT = "accept"
_LISTS = ("types", "statuses")
"""The keys of the table `accept` whose values are lists."""


def _refuse_part_of_accept(key: str, value: Any) -> None:
    """Raise PolicyError, which says what to write, for a value in place of the table or with a dotted key."""
    table, dot, name = key.partition(".")
    if table != _ACCEPT or value is None:
        return
    name = name if dot else "types"
    if name not in Accept.__struct_fields__:
        raise PolicyError(f"{key}: accept is a table with {', '.join(Accept.__struct_fields__)}")
    if name in _LISTS and not isinstance(value, list):
        value = [part.strip() for part in value.split(",")] if isinstance(value, str) else [value]
    wanted = shlex.quote(f"{_ACCEPT}={{{name} = {encoded(value)}}}")
    raise PolicyError(f"{key}: accept is a table; write {wanted}")


def _toml_table(text: str) -> Any:
    """Return an inline table of TOML as a dict, or the text if it is none."""
    import tomllib  # noqa: PLC0415 most values are JSON or text

    try:
        document = tomllib.loads(f"table = {text}")
    except (ValueError, RecursionError):  # TOMLDecodeError, or a number of thousands of digits
        return text
    return document["table"] if len(document) == 1 else text


def encoded(value: Any) -> str:
    """Return a policy value in JSON, the form that `policy set` accepts."""
    return msgspec.json.encode(value).decode()
