"""Where the records of JSON Lines are to be gathered (worker/local/jsonl_export.py does it)."""

from pathlib import Path
from typing import NamedTuple

import msgspec

from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.worker.errors import CommandError

STREAMS = frozenset({"-", "stream"})


class LinesError(CommandError):
    """Records cannot be written, or could not all be; the message says which and what to do."""


class Where(NamedTuple):
    """to: a file, or one of STREAMS; out: the folder of bodies; note: the file that tells how far it is."""

    to: str
    out: Path
    note: Path | None = None


def asking(fetches: list[Fetch]) -> list[Fetch]:
    """The fetches, each with `lines`."""
    return [msgspec.structs.replace(fetch, lines=True) for fetch in fetches]
