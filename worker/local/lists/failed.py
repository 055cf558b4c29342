"""The failed and cancelled fetches of a report, to be fetched again (`run --only-failed`)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.result import Outcome, Result, decode_result
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.output.reports import item_of, read_lines

MAX_NAMED = 20
"""The maximum number of results to name in the error about fetches that cannot be restored."""

_NOT_DONE = frozenset({Outcome.FAILED, Outcome.CANCELLED})


class FailedResult(NamedTuple):
    """The result of a fetch that failed or was cancelled."""

    line: int
    """Its line in the report, from 1."""
    result: Result


class Identity(NamedTuple):
    """The fields by which a result is matched to its fetch. Results of older workers have the URL only."""

    url: str
    method: str | None = None
    dest: str | None = None
    name: str | None = None
    key: str | None = None


class PrintedResult(msgspec.Struct):
    """The field that a command adds to a result when it prints one."""

    redacted: bool = False
    """True if secrets are masked."""


_printed = msgspec.json.Decoder(PrintedResult).decode


def read_failed(report: Path) -> list[FailedResult]:
    """Return the results of a report whose fetches have not succeeded. Raises CommandError.

    The last result of an ID counts. The result of a retry counts for the fetch that it repeats.
    """
    failed: dict[str, FailedResult] = {}
    number, item = 0, item_of(report)
    try:
        with read_lines("--only-failed", report) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                if b'"redacted":true' in line and _printed(line).redacted:
                    raise CommandError(
                        f"--only-failed {report}: {item} {number}: secrets are masked; give the file of"
                        " --report, or the output of `fetchfleet results --json --reveal`",
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
            f"--only-failed {report}: {item} {number}: not a result ({error}); give the file of --report",
            BAD_USE,
        ) from None
    return list(failed.values())


class Selection:
    """Selects the fetches of a list that failed, once for each result. Call it with every fetch, in order."""

    def __init__(self, failed: Iterable[FailedResult]) -> None:
        self._unmatched = Counter(_identity(item.result) for item in failed)

    def __call__(self, fetch: Fetch) -> bool:
        """Return whether the fetch is selected."""
        for identity in (
            Identity(fetch.url, fetch.method, fetch.dest, fetch.name, fetch.key),
            Identity(fetch.url),
        ):
            if self._unmatched[identity]:
                self._unmatched[identity] -= 1
                return True
        return False

    @property
    def missing(self) -> int:
        """The number of results whose fetch has not been in the list."""
        return self._unmatched.total()


def restore_fetches(report: Path, failed: Sequence[FailedResult], *, lines: bool) -> list[Fetch]:
    """Return the fetches of failed results, made from the fields that a result repeats.

    lines: the fetches require JSON Lines. Raises CommandError if a result lacks fields of its fetch.
    """
    fetches, faults, item = [], [], item_of(report)
    for number, result in failed:
        omitted = [name for name in result.omitted or () if not (lines and name == "lines")]
        if result.omitted is None or result.method is None:
            faults.append(f"{item} {number}: the result is of an older version, without fields of its fetch")
        elif omitted:
            faults.append(f"{item} {number}: the fetch also has {', '.join(omitted)}")
        else:
            try:
                fetches.append(
                    Fetch(
                        url=result.url,
                        method=result.method,
                        dest=result.dest,
                        name=result.name,
                        key=result.key,
                        meta=result.meta,
                        lines=lines,
                    )
                )
            except InvalidFetchError as error:
                faults.append(f"{item} {number}: {error}")
    if faults:
        message = (
            f"{report}: a result lacks fields of its fetch, such as headers and body;"
            f" give the list too: fetchfleet run LIST --only-failed {report}"
        )
        more = [f"and {len(faults) - MAX_NAMED} more"] if len(faults) > MAX_NAMED else []
        raise CommandError("\n".join([message, *faults[:MAX_NAMED], *more]), BAD_USE)
    return fetches


def _identity(result: Result) -> Identity:
    if result.method is None:
        return Identity(result.url)
    return Identity(result.url, result.method, result.dest, result.name, result.key)
