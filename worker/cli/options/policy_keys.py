"""The options that set keys of the policy's `[default]` table, over those of the policy file. Pure."""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import typer

from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.policy.model import PROFILES, PolicyError
from fetchfleet.worker.policy.pairs import parsed

PANEL = "Limits of each host"

POLICY_OPTIONS = {
    "concurrency": Annotated[
        str | None,
        typer.Option(
            metavar="N|MIN-MAX",
            help="Concurrent fetches; MIN-MAX adapts to the host. 8 by default.",
            rich_help_panel=PANEL,
        ),
    ],
    "rate": Annotated[
        float | None,
        typer.Option(metavar="N", help="Requests started per second; 0: no limit.", rich_help_panel=PANEL),
    ],
    "attempts": Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Failed attempts before a fetch fails. 5 by default.", rich_help_panel=PANEL
        ),
    ],
    "timeout": Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS|PROFILE",
            help="Limit of one attempt, or a profile: api, upload, stream (the default), internal.",
            rich_help_panel=PANEL,
        ),
    ],
    "max_bytes": Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Largest body, such as 50MB or 64MiB; 0: no limit.",
            rich_help_panel=PANEL,
        ),
    ],
    "set_keys": Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any key of the policy's default table, such as robots=obey. Repeatable.",
            rich_help_panel=PANEL,
        ),
    ],
}
"""By the names of the command's parameters."""

_BYTES = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?(?:([kKMGT])(i?))?B?")
_NUMBER = re.compile(r"[0-9]{1,9}")
_RANGE = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")


def policy_keys(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that options set, with their values. The policy checks the values.

    given: the values of POLICY_OPTIONS; None if an option is not given. Raises CommandError for other forms.
    """
    try:
        keys = parsed(given["set_keys"] or [])
    except PolicyError as error:
        raise CommandError(f"--set {error}", BAD_USE) from None
    if (concurrency := given["concurrency"]) is not None:
        keys["concurrency"] = concurrency_of(concurrency)
    if (timeout := given["timeout"]) is not None:
        keys["timeout"] = timeout_of(timeout)
    if (max_bytes := given["max_bytes"]) is not None:
        keys["max_bytes"] = bytes_of(max_bytes)
    if (rate_per_s := given["rate"]) is not None:
        keys["rate_per_s"] = rate_per_s
    if (attempts := given["attempts"]) is not None:
        keys["attempts"] = attempts
    return keys


def bytes_of(text: str) -> int:
    """Return the number of bytes of 50000000, 50MB or 47.7MiB, rounded up."""
    if (found := _BYTES.fullmatch(text)) is None:
        raise CommandError(f"--max-bytes {text}: write it like 50000000, 50MB or 64MiB; 0: no limit", BAD_USE)
    number, prefix, binary = found.groups()
    power = " KMGT".index(prefix.upper()) if prefix else 0
    unit: int = (1024 if binary else 1000) ** power
    return math.ceil(float(number) * unit)


def concurrency_of(text: str) -> int | dict[str, int]:
    """Return 8 for `8`, and the table of the range for `1-64`."""
    if found := _RANGE.fullmatch(text):
        return {"min": int(found[1]), "max": int(found[2])}
    if _NUMBER.fullmatch(text) is None:
        raise CommandError(f"--concurrency {text}: write it like 8, or 1-64 to adapt to the host", BAD_USE)
    return int(text)


def timeout_of(text: str) -> dict[str, float] | str:
    """Return a profile's name as it is, and for seconds the profile `stream` with no limit above them."""
    try:
        total_s = float(text)
    except ValueError:
        return text
    limits = msgspec.structs.asdict(PROFILES["stream"])
    return {name: min(limit_s, total_s) for name, limit_s in limits.items()} | {"total_s": total_s}
