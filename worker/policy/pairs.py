"""Parses `key=value` pairs of a policy table from the command line, and formats values. Pure.

A table may also be written as TOML, as in a policy file: `accept={types = ["image/*"]}`.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

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
    return values


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
