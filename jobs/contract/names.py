"""Templates of file names, such as `{host}/{stem}{ext}`. Pure.

Whatever the values of a fetch are, the path that a template gives is relative, stays in the out folder, and
is valid on every common file system. Only `{path}` adds folders.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote

from fetchfleet.jobs.contract.checks import field_checks
from fetchfleet.jobs.contract.ids import FETCH_ID_CHARS
from fetchfleet.jobs.contract.safe_text import UNSAFE_CHARACTERS
from fetchfleet.jobs.errors import InvalidFetchError

FIELDS = ("host", "path", "stem", "ext", "id", "n", "sha256", "date")
META = "meta."
"""The start of a placeholder for a value of the fetch's `meta`."""

OF_RESPONSE = frozenset({"stem", "ext"})
"""The placeholders whose values depend on the response."""

INDEX = "index.html"
"""The file name for a URL path that ends in a slash, as other download tools use it."""

MAX_PATH_BYTES = field_checks.MAX_DEST_BYTES - 1 - FETCH_ID_CHARS
"""Largest path that a template gives: `suffixed` adds a hyphen and a fetch ID."""

MAX_PART_BYTES = field_checks.MAX_DEST_PART_BYTES

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_KNOWN = re.compile(rf"\{{(?:{'|'.join(FIELDS)}|meta\.[^{{}}/]+)\}}")
_RESERVED = '<>:"|?*'
"""Characters that Windows reserves in file names."""

_UNSAFE = re.compile(rf"[/\\{re.escape(_RESERVED)}{UNSAFE_CHARACTERS}]")
_PLAIN = re.compile(r"[A-Za-z0-9_+~-](?:[A-Za-z0-9._+~-]{0,98}[A-Za-z0-9_+~-])?")
"""Parts that need no change, unless they are names of devices."""

_PLAIN_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
)
_DEVICE = re.compile(
    r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9\u00b9\u00b2\u00b3]) *(?:\..*)?", re.IGNORECASE
)
"""Names of devices in Windows, in any folder and with any extension."""

_EXTENSION = re.compile(r"(?:\.tar)?\.(?=[0-9]{0,15}[a-z])[a-z0-9]{1,16}\Z", re.IGNORECASE)
_JOINERS = {ord(joiner): None for joiner in "\u200c\u200d"}
"""Some file systems ignore them in comparisons."""


class NameToken(NamedTuple):
    """A piece of a template."""

    text: str
    """The literal text, or the name of the placeholder."""
    is_placeholder: bool


class Template(NamedTuple):
    """A parsed template."""

    parts: tuple[tuple[NameToken, ...], ...]
    """The tokens of each part of the path."""
    fields: frozenset[str]
    """The names of its placeholders."""


def is_template(dest: str) -> bool:
    """Return whether the text has a known placeholder."""
    return _KNOWN.search(dest) is not None


@lru_cache(maxsize=1024)
def parse(text: str) -> Template:
    """Parse a template. Raises InvalidFetchError if a placeholder is unknown or no path would be safe."""
    field_checks.relative_path("name", text, "out")
    parts: list[list[NameToken]] = [[]]
    for place, piece in enumerate(_PLACEHOLDER.split(text)):
        if place % 2:
            parts[-1].append(_placeholder(piece, first=not parts[-1]))
            continue
        _check_literal(piece)
        first, *others = piece.split("/")
        parts[-1] += [NameToken(first, is_placeholder=False)] if first else []
        parts += [[NameToken(other, is_placeholder=False)] if other else [] for other in others]
    for part in parts:
        literal = "".join(token.text for token in part if not token.is_placeholder)
        if not any(token.is_placeholder for token in part) and safe_part(literal) != literal:
            raise InvalidFetchError(f"name: {literal!r} is no safe file name on every system; use another")
    fields = frozenset(token.text for part in parts for token in part if token.is_placeholder)
    return Template(tuple(map(tuple, parts)), fields)


def meta_values(text: str, meta: Any) -> list[Any]:
    """Return the values of `meta` that a template uses, None for each missing one."""
    keys = sorted(field.removeprefix(META) for field in parse(text).fields if field.startswith(META))
    return [meta.get(key) if isinstance(meta, dict) else None for key in keys]


def _placeholder(field: str, *, first: bool) -> NameToken:
    if _KNOWN.fullmatch(f"{{{field}}}") is None:
        known = " ".join(f"{{{name}}}" for name in (*FIELDS, "meta.KEY"))
        raise InvalidFetchError(f"name: {{{field}}} is not a placeholder; use one of {known}")
    if field == "path" and not first:
        raise InvalidFetchError("name: {path} has folders, so it needs a slash in front of it")
    return NameToken(field, is_placeholder=True)


def _check_literal(text: str) -> None:
    if "{" in text or "}" in text:
        raise InvalidFetchError("name: has a brace without its partner; leave it out")
    for character in text:
        if character in _RESERVED:
            raise InvalidFetchError(f"name: {character!r} is not allowed in file names on every system")


def expand(template: Template, values: Mapping[str, str]) -> str:
    """Return the path that a template gives.

    values: of each of its placeholders, any text; that of `path` is the path of a URL. Raises
    InvalidFetchError if the path is too long.
    """
    done: list[str] = []
    for part in template.parts:
        text = ""
        for name, is_placeholder in part:
            if not is_placeholder:
                text += name
            elif name == "path":
                *folders, text = _names_of(values[name])
                done += folders
            else:
                text += _UNSAFE.sub("_", values[name])
        if part[0].is_placeholder and part[0].text != "path" and text.lstrip(" ").startswith("."):
            text = text.lstrip(" ").replace(".", "_", 1)  # a host must not choose a hidden file
        done.append(safe_part(text))
    path = "/".join(done)
    if len(path) > MAX_PATH_BYTES // 4 and len(path.encode()) > MAX_PATH_BYTES:
        raise InvalidFetchError(f"name: gives a path of more than {MAX_PATH_BYTES} bytes; shorten it")
    return path


def _names_of(url_path: str) -> list[str]:
    """Return the safe names of the folders of a URL's path, and that of its file."""
    names = [safe_part(_UNSAFE.sub("_", unquoted(name))) for name in url_path.split("/") if name]
    return names if names and not url_path.endswith("/") else [*names, INDEX]


def unquoted(text: str) -> str:
    """Return the text without percent-encoding; unchanged if its bytes are not UTF-8."""
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text


def safe_part(text: str) -> str:
    """Return a part of a path that is a valid file name everywhere. text: without unsafe characters."""
    if _PLAIN.fullmatch(text) is not None and text.partition(".")[0].lower() not in _PLAIN_DEVICES:
        return text
    part = text.rstrip(" .").lstrip(" ")
    if not part:
        return "_"
    if _DEVICE.fullmatch(part) is not None:
        part = f"_{part}"
    elif part.translate(_JOINERS).casefold().startswith(".fetchfleet"):  # of the workers
        part = f"_{part[1:]}"
    if len(part.encode()) <= MAX_PART_BYTES:
        return part
    # Names that differ after the cut stay different.
    return _fitted(part, f"~{hashlib.sha256(part.encode()).hexdigest()[:8]}")


def split_extension(name: str) -> tuple[str, str]:
    """Split a file name before its extension, which has a letter and its dot; "" if it has none."""
    found = _EXTENSION.search(name)
    if found is None or not name[: found.start()].strip(" ."):
        return name, ""
    return name[: found.start()], found[0]


def suffixed(path: str, fetch_id: str) -> str:
    """Return the path with the fetch ID in front of the extension: the name of a body whose name is taken."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{_fitted(name, f'-{fetch_id}')}"


def _fitted(name: str, mark: str) -> str:
    """Insert a mark in front of the extension of a name, and cut the name to its limit."""
    stem, extension = split_extension(name)
    stem_bytes = MAX_PART_BYTES - len(mark) - len(extension)
    return f"{stem.encode()[:stem_bytes].decode(errors='ignore')}{mark}{extension}"
