"""The fetches of a report that failed or were cancelled, to be fetched again (`run --only-failed`)."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from fetchfleet.jobs.contract.model import Fetch, Outcome, Result, decode_result
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.worker.errors import BAD_USE, CommandError

MAX_NAMED = 20
"""How many results are named that cannot be turned back into their fetches."""

_NOT_DONE = frozenset({Outcome.FAILED, Outcome.CANCELLED})


class FailedResult(NamedTuple):
    """The result of a fetch that failed or was cancelled, and its line in the report, from 1."""

    line: int
    result: Result


class Identity(NamedTuple):
    """The fields that match a result to its fetch; only the URL if an older worker wrote it."""

    url: str
    method: str | None = None
    dest: str | None = None
    key: str | None = None


class ShownRecord(msgspec.Struct):
    """The field that a command adds to a result that it prints."""

    redacted: bool = False


_shown = msgspec.json.Decoder(ShownRecord).decode


def read_failed(report: Path) -> list[FailedResult]:
    """Return the results of a report whose fetches are still to be done; raises CommandError.

    The last result of an id counts, and that of a retry counts for the fetch that it repeats.
    """
    failed: dict[str, FailedResult] = {}
    number = 0
    try:
        with report.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                if b'"redacted":true' in line and _shown(line).redacted:
                    raise CommandError(
                        f"--only-failed {report}: line {number} lacks what a command has hidden; give the"
                        " file of --report, or what `fetchfleet results --json --reveal` prints",
                        BAD_USE,
                    )
                result = decode_result(line)
                for done in (result.id, result.retry_of):
                    failed.pop(done or "", None)
                if result.outcome in _NOT_DONE:
                    failed[result.id] = FailedResult(number, result)
    except OSError as error:
        raise CommandError(f"--only-failed {report}: {error.strerror}", BAD_USE) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CommandError(
            f"--only-failed {report}: line {number} is no result ({error}); give the file of --report",
            BAD_USE,
        ) from None
    return list(failed.values())


def chosen(fetches: Sequence[Fetch], failed: Sequence[FailedResult]) -> tuple[list[Fetch], int]:
    """Return the fetches of a list that failed, and how many failed ones are not in the list."""
    wanted = Counter(_identity(item.result) for item in failed)
    found = []
    for fetch in fetches:
        for identity in (Identity(fetch.url, fetch.method, fetch.dest, fetch.key), Identity(fetch.url)):
            if wanted[identity]:
                wanted[identity] -= 1
                found.append(fetch)
                break
    return found, wanted.total()


def restored(report: Path, failed: Sequence[FailedResult], *, lines: bool) -> list[Fetch]:
    """Return the fetches of failed results; lines: that they ask for JSON Lines is known from elsewhere.

    Raises CommandError if a result does not have all of its fetch.
    """
    fetches, lacking = [], []
    for number, result in failed:
        omitted = [name for name in result.omitted or () if not (lines and name == "lines")]
        if result.omitted is None or result.method is None:
            lacking.append(f"line {number}: it does not have its fetch")
        elif omitted:
            lacking.append(f"line {number}: its fetch has also {', '.join(omitted)}")
        else:
            try:
                fetches.append(
                    Fetch(
                        url=result.url,
                        method=result.method,
                        dest=result.dest,
                        key=result.key,
                        meta=result.meta,
                        lines=lines,
                    )
                )
            except InvalidFetchError as error:
                lacking.append(f"line {number}: {error}")
    if lacking:
        message = (
            f"{report}: a result does not hold all of a fetch (not its headers or body, for example);"
            f" give the list too: fetchfleet run LIST --only-failed {report}"
        )
        more = [f"and {len(lacking) - MAX_NAMED} more"] if len(lacking) > MAX_NAMED else []
        raise CommandError("\n".join([message, *lacking[:MAX_NAMED], *more]), BAD_USE)
    return fetches


def _identity(result: Result) -> Identity:
    if result.method is None:
        return Identity(result.url)
    return Identity(result.url, result.method, result.dest, result.key)
