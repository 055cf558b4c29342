"""Fetches the lists at URLs, such as sitemaps, with the policy of the fetches that they name."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.contract.checks.accept import Accept
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.result import Outcome, Reason, Result, decode_result
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local import run as local
from fetchfleet.worker.local.lists.fetch_stream import Change, changed, in_memory
from fetchfleet.worker.local.lists.rows import ListError
from fetchfleet.worker.local.output.output_files import Outputs
from fetchfleet.worker.local.process import prestarted, run_until_signal
from fetchfleet.worker.observability import redact
from fetchfleet.worker.settings import FILES, Settings
from fetchfleet.worker.sink.files.directory import PARTIAL_FILES, REDIS_FOLDER, STATE_FOLDER, make_out

LISTS = "lists"
"""The folder with fetched lists, in the state folder of a run."""
MAX_LIST_BYTES = 1 << 30
"""The largest list that is fetched."""
MAX_NAMED = 5
_INTERRUPTED = "interrupted while its lists were fetched; repeat the command"


def by_run(
    urls: Sequence[str],
    settings: Settings,
    flags: Mapping[str, Any],
    changes: Sequence[Change],
    outputs: Outputs,
) -> dict[str, Path]:
    """Fetch lists by a run below the state folder, and return the file of each. Raises CommandError.

    settings, flags, changes, outputs: those of the run that reads the lists. If that was interrupted, the
    files that it has read are used again, so that it continues with the same list.
    """
    state = settings.out / STATE_FOLDER
    folder = state / LISTS / hashlib.sha256("\n".join(urls).encode()).hexdigest()[:16]
    complete = folder / "complete"
    files = {url: folder / f"{number:05d}" for number, url in enumerate(urls)}
    if (state / "run.json").exists() and complete.exists():
        return files
    complete.unlink(missing_ok=True)
    outputs.warn(f"fetching {_named(urls)}", "")
    fetches = [_fetch(url, changes, dest=file.name) for url, file in files.items()]
    make_out(folder, [PARTIAL_FILES, REDIS_FOLDER])
    report = folder / "report.jsonl"
    own_settings = msgspec.structs.replace(settings, out=folder, store="", sink=FILES)
    own_flags = {**flags, "out": str(folder), "spool": None, "sink": FILES}
    own_outputs = Outputs(outputs.console, report, summary=False)
    with prestarted(1) as workers:
        run = local.run(in_memory(fetches), own_settings, own_flags, workers, own_outputs, again=True)
        counts = run_until_signal(run, _INTERRUPTED).counts
    if counts.failed + counts.cancelled:
        _check([decode_result(line) for line in report.read_bytes().splitlines()])
    complete.touch()
    return files


def by_fleet(
    urls: Sequence[str], settings: Settings, changes: Sequence[Change], outputs: Outputs
) -> dict[str, Path]:
    """Fetch lists by a batch of a running fleet, whose out folder is on this machine. As `by_run`."""
    if settings.store:
        raise CommandError("--out: a list is read from a folder; fetch it first, and give its file", BAD_USE)
    outputs.warn(f"fetching {_named(urls)} through the workers", "")
    results = run_until_signal(_results([_fetch(url, changes) for url in urls], settings), _INTERRUPTED)
    _check(results)
    files = {}
    for url, result in zip(urls, results, strict=True):
        if result.store is not None:
            raise CommandError(
                f"{redact.url(url)}: the workers stored the list in {result.store}; give it as a file",
                BAD_USE,
            )
        file = settings.out / (result.path or "")
        if result.path is None or not file.is_file():
            raise CommandError(
                f"--out {settings.out}: not the workers' folder for bodies: {redact.url(url)} is not in it",
                BAD_USE,
            )
        files[url] = file
    return files


async def _results(fetches: Sequence[Fetch], settings: Settings) -> list[Result]:
    """Return the results of fetches, in their order."""
    via: Any = "inbox" if settings.via == "inbox" else "lanes"
    async with Fleet(settings.redis_url, redis_patience_s=settings.redis_patience_s, via=via) as fleet:
        batch = await fleet.submit(fetches)
        by_id = {result.id: result async for result in batch.results()}
        return [by_id[one] for one in batch.ids]


def _fetch(url: str, changes: Sequence[Change], dest: str | None = None) -> Fetch:
    """Return the fetch of a list. changes: those of all fetches; of these only the header fields are used.

    Its `accept` replaces that of the policy, which is about the fetches of the list.
    """
    try:
        headers = changed(Fetch(url=url), changes).headers
        return Fetch(url=url, dest=dest, headers=headers, max_bytes=MAX_LIST_BYTES, accept=Accept())
    except InvalidFetchError as error:
        raise ListError(f"{redact.url(url)}: {error}") from None


def _check(results: Sequence[Result]) -> None:
    """Raise ListError if a list was not fetched."""
    failed = [result for result in results if result.outcome not in {Outcome.STORED, Outcome.UNCHANGED}]
    if failed:
        lines = [f"{redact.url(one.url)}: not fetched: {_cause(one)}" for one in failed[:MAX_NAMED]]
        more = [f"and {len(failed) - MAX_NAMED} more"] if len(failed) > MAX_NAMED else []
        raise ListError("\n".join([*lines, *more]))


def _cause(result: Result) -> str:
    reason = result.reason or str(result.outcome)
    if result.reason == Reason.HTTP_STATUS:
        return f"{reason} {result.status}"
    return f"{reason}; --allow-net permits it" if result.reason == Reason.EGRESS_REFUSED else reason


def _named(urls: Sequence[str]) -> str:
    return redact.url(urls[0]) if len(urls) == 1 else f"{len(urls):,} lists"
