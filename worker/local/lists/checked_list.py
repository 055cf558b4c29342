"""Opens a list of fetches: finds its files, recognises their formats, and checks every fetch."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

from fetchfleet.jobs.contract.fetch_list import NOT_TEXT, SAMPLE_LINES, read_fetch
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.lists.fetch_stream import (
    Change,
    Checked,
    DestCheck,
    FetchStream,
    Part,
    RowPlace,
    Rows,
    TextReader,
    Wanted,
    changed,
    check,
    in_memory,
)
from fetchfleet.worker.local.lists.formats import recognition
from fetchfleet.worker.local.lists.rejects import Rejects
from fetchfleet.worker.local.lists.rows import ListError, ListOptions
from fetchfleet.worker.local.lists.sources import URLS, ListFile, file_sources, find_sources

BY_CONTENT = ListOptions()
MAX_LISTS = 50_000
"""The most sitemaps of an index, as in the protocol."""
MAX_INDEX_LEVELS = 3
"""The most indexes above a sitemap. The protocol has one."""
_FETCHED_BY = (
    "fetched by `run`, and by `submit` if --out FOLDER names the workers' folder on this machine, but not by"
    " a dry run"
)
"""The commands that fetch lists, for an error of one that does not."""
FetchLists = Callable[[Sequence[str]], Mapping[str, Path]]
"""Fetches the lists at URLs, and returns the file of each."""
HEAD_BYTES = 64 * 1024
"""The start of a file that shows its format."""


class Hosts(Protocol):
    """The receiver of the URLs of a pass."""

    def add(self, url: str) -> None:
        """Add the URL of a fetch."""

    def clear(self) -> None:
        """Forget all URLs, because another pass begins."""


class ListUse(NamedTuple):
    """The use that a command makes of the fetches of a list."""

    changes: Sequence[Change] = ()
    """Applied to each fetch."""
    select: Callable[[], Wanted] | None = None
    """Returns, for each pass, the function that tells whether a fetch is used."""
    hosts: Hosts | None = None
    """Receives the URL of each fetch."""
    rejects: Path | None = None
    """The file for invalid rows; if None, an invalid row refuses the list."""
    expand: bool = False
    """Expand ranges and alternatives in braces."""


def open_list(
    file: str, use: ListUse, options: ListOptions, fetch_lists: FetchLists | None = None
) -> FetchStream:
    """Read a list for the first time and return its stream. Raises CommandError, also for an empty list.

    file: the argument FILE: a path, a pattern of paths, the URL of an object or of a list, or `-` for
    standard input. With `select` the stream may be empty.
    """
    expand = None
    if use.expand:
        from fetchfleet.worker.local.lists.formats.expansion import expanded  # noqa: PLC0415 few lists need it

        expand = expanded
    with ExitStack() as stack:
        rows = Rows(find_parts(file, options, fetch_lists, stack), expand)
        checked, skipped = _check(file, rows, use)
        stack.pop_all()
    return FetchStream(checked, rows, use.changes, use.select, skipped)


def find_parts(
    file: str, options: ListOptions, fetch_lists: FetchLists | None, stack: ExitStack
) -> list[Part]:
    """Return the files of a list with their readers. The lists of an index take its place.

    stack: closes the files. Raises CommandError.
    """
    if not file.startswith(URLS):
        sources = find_sources(file)
    elif fetch_lists is not None:
        sources = file_sources(fetch_lists([file]))
    else:
        raise ListError(f"{file}: a list at a URL is {_FETCHED_BY}")
    parts: list[Part] = []
    levels = 0
    while True:
        for source in sources:
            stack.callback(source.close)
        found = [recognised(source, options) for source in sources]
        parts += [part for part in found if not part.reader.is_index]
        urls = list(dict.fromkeys(islice(_listed(found), MAX_LISTS + 1)))
        if not urls:
            return parts
        name = next(part.file.name for part in found if part.reader.is_index)
        if fetch_lists is None:
            raise ListError(f"{name}: an index; its sitemaps are {_FETCHED_BY}")
        if levels == MAX_INDEX_LEVELS or len(urls) > MAX_LISTS:
            limits = f"more than {MAX_INDEX_LEVELS} levels or {MAX_LISTS:,} sitemaps"
            raise ListError(f"{name}: an index with {limits}")
        sources, levels = file_sources(fetch_lists(urls)), levels + 1


def _listed(parts: Sequence[Part]) -> Iterator[str]:
    """Yield the URLs of the lists in indexes."""
    for part in parts:
        if part.reader.is_index:
            with part.file.opened() as file:
                yield from (url for _, url in part.reader.read(file))


def recognised(source: ListFile, options: ListOptions) -> Part:
    """Return a file with the reader of its format. Raises CommandError for a format that has none."""
    with source.opened() as file:
        head = file.read(HEAD_BYTES)
    sample = [] if NOT_TEXT.search(head) else sample_of(head)
    if options == BY_CONTENT and sample and all(map(is_fetch, sample)):
        return Part(source, TextReader(), sample)
    return Part(source, recognition.reader_of(source.name, head, sample, options), sample)


def sample_of(head: bytes) -> list[str]:
    """Return the first complete lines of a text that are not skipped."""
    sample = [text for _, text in islice(TextReader().read(io.BytesIO(head)), SAMPLE_LINES)]
    return sample[:-1] if len(head) == HEAD_BYTES and 1 < len(sample) < SAMPLE_LINES else sample


def is_fetch(text: str) -> bool:
    """Return whether a line is a valid fetch."""
    try:
        read_fetch(text)
    except InvalidFetchError:
        return False
    return True


def _check(file: str, rows: Rows, use: ListUse) -> tuple[Checked, int]:
    """Check every fetch; return what was found, and the number of rows that are skipped."""
    rejects: Rejects | None = None

    def rejected() -> Rejects:
        nonlocal rejects
        if rejects is None:
            several_files = len(rows.parts) > 1
            rejects = stack.enter_context(Rejects(several_files=several_files, keep=use.rejects is not None))
        return rejects

    def reject(place: RowPlace, text: str, error: str) -> None:
        rejected().add(place, text, error)

    def one_pass(dests: DestCheck | None = None) -> Checked:
        wanted = None if use.select is None else use.select()
        return check(rows, reject, use.changes, wanted, None if use.hosts is None else use.hosts.add, dests)

    with ExitStack() as stack:
        checked = one_pass()
        if checked.conflicts:
            from fetchfleet.worker.local.lists.dest_log import KnownConflicts  # noqa: PLC0415

            rejects = None
            if use.hosts is not None:
                use.hosts.clear()
            checked = one_pass(KnownConflicts(checked.conflicts, rows.other_place))
        some_valid = checked.count > 0
        skipped = 0 if rejects is None else rejects.count
        if use.rejects is not None:
            rejected().skip(file, use.rejects, some_valid=some_valid)
        elif rejects is not None:
            raise rejects.refusal(file, some_valid=some_valid)
    if not some_valid and skipped:
        raise CommandError(f"{file}: every line is invalid; see {use.rejects}", BAD_USE)
    if not some_valid and use.select is None:
        raise CommandError(f"{file}: no fetches; give a URL or a JSON object on each line", BAD_USE)
    return checked, skipped


def open_failed(
    file: str | None,
    report: Path,
    use: ListUse,
    options: ListOptions,
    fetch_lists: FetchLists | None,
    *,
    lines: bool,
) -> tuple[FetchStream, int]:
    """Return the fetches of a list that failed by a report, and the number of failures that it lacks.

    Without a list, the fetches are made from the report. lines: these require JSON Lines. The stream is
    empty if no fetch failed. Raises CommandError.
    """
    from fetchfleet.worker.local.lists.failed import Selection, read_failed, restore_fetches  # noqa: PLC0415

    results = read_failed(report)
    if file is None or not results:
        fetches = restore_fetches(report, results, lines=lines)
        stream = in_memory([changed(fetch, use.changes) for fetch in fetches])
        if use.hosts is not None:
            for fetch in fetches:
                use.hosts.add(fetch.url)
        return stream, 0
    selections: list[Selection] = []

    def select() -> Selection:
        selections.append(Selection(results))
        return selections[-1]

    stream = open_list(file, use._replace(select=select), options, fetch_lists)
    if not stream.count:
        stream.close()
        raise CommandError(
            f"{file}: none of the {len(results)} failed fetches of {report} is in it;"
            " if that run had options for paths, such as --name, give them too",
            BAD_USE,
        )
    return stream, selections[-1].missing
