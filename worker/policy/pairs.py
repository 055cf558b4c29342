"""Parses `key=value` pairs of a policy table from the command line, and formats values. Pure."""

from collections.abc import Sequence
from typing import Any

import msgspec

from fetchfleet.worker.policy.model import PolicyError


def parsed(pairs: Sequence[str]) -> dict[str, Any]:
    """Return the values by key. A value that is not valid JSON is text. Raises PolicyError."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise PolicyError(f"{pair!r} is not KEY=VALUE")
        try:
            values[key] = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            values[key] = text
    return values


def encoded(value: Any) -> str:
    """Return a policy value in JSON, the form that `policy set` accepts."""
    return msgspec.json.encode(value).decode()
