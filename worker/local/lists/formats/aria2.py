"""Input files of aria2: a line of URIs, then indented lines with its options. Pure.

The format is that of the option `--input-file`. Of several URIs, which are mirrors, the first one is used.
"""

import io
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any

import msgspec

from fetchfleet.jobs.contract.fetch import MAX_FETCH_BYTES
from fetchfleet.jobs.contract.fetch_list import bounded, error_of
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.worker.local.lists.rows import BadRow, Row

IGNORED = frozenset(
    {
        "allow-overwrite",
        "allow-piece-length-change",
        "always-resume",
        "auto-file-renaming",
        "check-integrity",
        "conditional-get",
        "connect-timeout",
        "continue",
        "file-allocation",
        "gid",
        "lowest-speed-limit",
        "max-connection-per-server",
        "max-download-limit",
        "max-resume-failure-tries",
        "max-tries",
        "min-split-size",
        "parameterized-uri",
        "pause",
        "piece-length",
        "remote-time",
        "retry-wait",
        "reuse-uri",
        "split",
        "stream-piece-selector",
        "timeout",
        "uri-selector",
    }
)
"""The options about how aria2 downloads. The policy takes their place."""
USED = frozenset({"out", "dir", "checksum"})
FIELDS = {"referer": "Referer", "user-agent": "User-Agent"}
"""The options that set a header field."""

_OPTION = re.compile(r"[ \t]+([a-z0-9-]+)=(.*)")
_URIS = re.compile(r"[a-z][a-z0-9+.-]*:[^\t]+(?:\t+[a-z][a-z0-9+.-]*:[^\t]+)*\t*", re.IGNORECASE)


class Aria2Reader:
    """The reader of an input file of aria2."""

    noun = "line"
    description = "an input file of aria2; of several URIs in a line, the first is used"
    is_index = False

    def read(self, file: IO[bytes]) -> Iterator[Row]:
        """Yield a row for each line of URIs, with the options below it."""
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
        number, uris, options, size_chars = 0, "", list[str](), 0
        for place, raw in enumerate(bounded(text), start=1):
            line = raw.rstrip()
            if not line or line.startswith("#"):
                continue
            if line[0] in " \t" and uris:
                if size_chars <= MAX_FETCH_BYTES:  # else the row is refused
                    options.append(line)
                    size_chars += len(line)
                continue
            if uris:
                yield number, text_of(uris, options)
            number, uris, options, size_chars = place, line.strip(), [], 0
        if uris:
            yield number, text_of(uris, options)


def is_aria2(lines: Sequence[str]) -> bool:
    """Return whether the first lines of a text, with their indentation, are an input file of aria2."""
    indented = [line for line in lines if line[:1] in {" ", "\t"}]
    if not indented and not any("\t" in line for line in lines):
        return False
    return (
        bool(lines)
        and lines[0] not in indented
        and all(_OPTION.fullmatch(line) for line in indented)
        and all(_URIS.fullmatch(line) for line in lines if line not in indented)
    )


def text_of(uris: str, options: Sequence[str]) -> str:
    """Return the fetch of a line of URIs and its options, as a line of a text list."""
    url = uris.split("\t", maxsplit=1)[0].strip()
    try:
        fields = fields_of(options)
        if not fields and not url.startswith(("{", "#")):
            return url
        return msgspec.json.encode({"url": url, **fields}).decode()
    except (InvalidFetchError, UnicodeEncodeError) as error:
        text = "\n".join([uris, *options])[:MAX_FETCH_BYTES]
        return BadRow(text, error_of(text, InvalidFetchError(str(error))))


def fields_of(options: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a fetch that the options of a line set. Raises InvalidFetchError."""
    if sum(map(len, options)) > MAX_FETCH_BYTES:
        raise InvalidFetchError(f"its options have more than {MAX_FETCH_BYTES:,} characters")
    fields: dict[str, Any] = {}
    headers: dict[str, str] = {}
    values: dict[str, str] = {}
    for line in options:
        found = _OPTION.fullmatch(line)
        if found is None:
            raise InvalidFetchError(f"{line.strip()[:40]!a} is not an option such as out=FILE")
        name, value = found[1], found[2].strip()
        if name == "header":
            field, _, text = value.partition(":")
            headers[field.strip()] = text.strip()
        elif name in FIELDS:
            headers[FIELDS[name]] = value
        elif name in USED:
            values[name] = value
        elif name not in IGNORED:
            raise InvalidFetchError(f"the option {name} of aria2 is not supported; remove it")
    if "checksum" in values:
        fields["sha256"] = sha256_of(values["checksum"])
    if "out" in values or "dir" in values:
        folder = values.get("dir", "").rstrip("/")
        fields["dest"] = "/".join([*([folder] if folder else []), values.get("out", "{stem}{ext}")])
    return {**fields, "headers": headers} if headers else fields


def sha256_of(checksum: str) -> str:
    """Return the digest of an option `checksum`. Raises InvalidFetchError for another algorithm."""
    algorithm, _, digest = checksum.partition("=")
    if algorithm.strip().lower() != "sha-256":
        raise InvalidFetchError(
            f"checksum={algorithm.strip()[:20]}: only sha-256 is checked; remove the option"
        )
    return digest.strip()
