"""Checks of the fields of a fetch; each raises InvalidFetchError, which names the field. Pure."""

import itertools
import math
import re
import sys
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import msgspec

from fetchfleet.jobs.contract.safe_text import UNSAFE_CHARACTERS
from fetchfleet.jobs.contract.urls import UrlError, canonical_url
from fetchfleet.jobs.errors import InvalidFetchError


class Method(StrEnum):
    """The methods that a fetch may have; producers may write them in lower case."""

    GET = "GET"
    HEAD = "HEAD"
    POST = "POST"
    PUT = "PUT"
    PATCH = "PATCH"
    DELETE = "DELETE"
    OPTIONS = "OPTIONS"


class IfExists(StrEnum):
    """The treatment of a file that exists at `dest`."""

    REPLACE = "replace"
    SKIP = "skip"
    FAIL = "fail"


class Fallback(StrEnum):
    """The result of a fetch whose host is down: none, or the body stored before."""

    NONE = "none"
    STALE = "stale"


METHODS = frozenset(Method)
_IF_EXISTS = tuple(IfExists)
_FALLBACKS = tuple(Fallback)
BODYLESS_METHODS = frozenset({Method.GET, Method.HEAD, Method.OPTIONS})
IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})  # RFC 9110 §9.2.2
MAX_HEADER_BYTES = 16 * 1024
MAX_BODY_BYTES = 1 << 20
MAX_BYTES = (1 << 63) - 1
"""Of a limit on a body: the largest number that every reader of JSON takes."""

MAX_DEST_BYTES = 1024
MAX_DEST_PART_BYTES = 255
MAX_KEY_BYTES = 200
MAX_META_DEPTH = 100

# Fields of the connection or of the message's framing are set by the worker (RFC 9110 §7.6.1, RFC 9112 §6).
RESERVED_HEADERS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
# RFC 9110 §5.5, without obs-text: httpx sends ASCII, h11 no space at an end.
_FIELD_VALUE = re.compile(r"(?:[!-~]+(?:[\t ]+[!-~]+)*)?")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_TEXT = frozenset({str})
_SCALARS = frozenset({str, int, float, bool, type(None)})
_NOT_IN_A_KEY = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_NOT_IN_A_NAME = re.compile(rf"[\\{UNSAFE_CHARACTERS}]")


def url(value: str) -> str:
    """Return the URL in canonical form."""
    try:
        return canonical_url(value)
    except UrlError as error:
        raise InvalidFetchError(f"url: {error}") from None


def method(value: str) -> str:
    """Return the method in upper case."""
    if value.upper() not in METHODS:
        raise InvalidFetchError(f"method: {value!r} is not one of {', '.join(sorted(METHODS))}")
    return value.upper()


def headers(value: Mapping[str, str]) -> None:
    """Require names that are tokens, values without line breaks, and no field of the connection."""
    for name, text in value.items():
        if not _TOKEN.fullmatch(name):
            # A missing colon puts the value into the name, so no more than its first token is shown.
            begins = found[0] if (found := _TOKEN.match(name)) else ""
            raise InvalidFetchError(f"headers: what begins {begins!r} is not a header name")
        if not _FIELD_VALUE.fullmatch(text):
            raise InvalidFetchError(
                f"headers: the value of {name} holds a line break, a control or a non-ASCII character,"
                " or begins or ends with a space"
            )
        if name.lower() in RESERVED_HEADERS or name.lower().startswith("proxy-"):
            raise InvalidFetchError(f"headers: {name} belongs to the connection; leave it out")
    size = sum(len(name) + len(text) + 4 for name, text in value.items())
    if size > MAX_HEADER_BYTES:
        raise InvalidFetchError(f"headers: {size} bytes are more than {MAX_HEADER_BYTES}")


def body(value: str) -> None:
    """Require text of at most MAX_BODY_BYTES."""
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise InvalidFetchError("body: holds half a surrogate pair, which is not text")
    if len(value.encode()) > MAX_BODY_BYTES:
        raise InvalidFetchError(f"body: is longer than {MAX_BODY_BYTES} bytes")


def dest(value: str) -> None:
    """Require a relative path that cannot leave the out folder."""
    relative_path("dest", value, "out")


def relative_path(field: str, value: str, folder: str) -> None:
    """Require plain names joined by single slashes, which cannot leave the folder."""
    if value.startswith("/"):
        raise InvalidFetchError(
            f"{field}: {value!r} is absolute; give a path relative to the {folder} folder"
        )
    if found := _NOT_IN_A_NAME.search(value):
        raise InvalidFetchError(
            f"{field}: holds {found[0]!a}; leave out backslashes, and characters that control or hide text"
        )
    if len(value.encode()) > MAX_DEST_BYTES:
        raise InvalidFetchError(f"{field}: is longer than {MAX_DEST_BYTES} bytes")
    for part in value.split("/"):
        if part == "..":
            raise InvalidFetchError(f"{field}: {value!r} climbs out of the {folder} folder")
        if part in {"", "."}:
            raise InvalidFetchError(f"{field}: {value!r} has an empty part; use names joined by single /")
        if part.startswith(".fetchfleet"):
            raise InvalidFetchError(f"{field}: {part!r} is a name the workers keep for themselves")
        if len(part.encode()) > MAX_DEST_PART_BYTES:
            raise InvalidFetchError(f"{field}: a name is longer than {MAX_DEST_PART_BYTES} bytes")


def if_exists(value: str, with_dest: str | None) -> None:
    """Require a known choice, and a dest for any but IfExists.REPLACE."""
    if value not in _IF_EXISTS:
        raise InvalidFetchError(f"if_exists: {value!r} is not one of {', '.join(IfExists)}")
    if value != IfExists.REPLACE and with_dest is None:
        raise InvalidFetchError(f"if_exists: {value!r} needs a dest; give one, or leave if_exists out")


class Dests:
    """The dests of one list, to find fetches that would replace each other's bodies.

    Two fetches may share a dest if both set if_exists to skip or fail, or if they have the same key and so
    are one fetch. Each dest is kept as a hash of 8 bytes; those beyond `most` are not compared.
    """

    def __init__(self, noun: str, most: int = sys.maxsize) -> None:
        self._noun = noun
        self._most = most
        self._first: dict[int, int] = {}
        self._keyed: set[int] = set()

    def add(self, number: int, dest: str, if_exists: str, key: str | None) -> None:
        """Raise InvalidFetchError, which names the earlier fetch by its number, if the two clash."""
        if key is not None and hash((dest, key)) in self._keyed:
            return
        this = number * 2 + (if_exists != IfExists.REPLACE)  # the lowest bit: the file that exists stays
        first = self._first.get(hash(dest), this)
        if first != this and not first & this & 1:
            raise InvalidFetchError(
                f"dest: {dest!r} is that of {self._noun} {first // 2} too;"
                " give each its own, or set if_exists to skip or fail on both"
            )
        if len(self._first) < self._most:
            self._first.setdefault(hash(dest), this)
            if key is not None:
                self._keyed.add(hash((dest, key)))


def sha256(value: str) -> str:
    """Return the digest in lower case."""
    if not _SHA256.fullmatch(value):
        raise InvalidFetchError("sha256: is not 64 hex digits")
    return value.lower()


def max_bytes(value: int | None) -> None:
    """Require 1 to MAX_BYTES, if given."""
    if value is not None and (isinstance(value, bool) or not 1 <= value <= MAX_BYTES):
        raise InvalidFetchError(f"max_bytes: {value} is not within 1 and {MAX_BYTES}")


def decode(with_headers: Mapping[str, str], *, wanted: bool) -> None:
    """Refuse to decode a range: a part of a compressed body cannot be decoded."""
    if wanted and any(name.lower() == "range" for name in with_headers):
        raise InvalidFetchError("decode: a part of a body cannot be decoded; leave out decode or the Range")


def deadline(value_s: float | None, most_s: float) -> None:
    """Require more than zero and at most most_s, if given."""
    if value_s is not None and (isinstance(value_s, bool) or not 0 < value_s <= most_s):
        raise InvalidFetchError(f"deadline_s: {value_s} is not within 0 (exclusive) and {most_s:.0f}")


def fallback(value: str | None) -> None:
    """Require a known choice; None leaves it to the policy."""
    if value is not None and value not in _FALLBACKS:
        raise InvalidFetchError(f"fallback: {value!r} is not one of {', '.join(Fallback)}")


def key(value: str) -> None:
    """Require printable text of 1 to MAX_KEY_BYTES."""
    if not value or len(value.encode(errors="surrogatepass")) > MAX_KEY_BYTES:
        raise InvalidFetchError(f"key: must have 1 to {MAX_KEY_BYTES} bytes")
    if _NOT_IN_A_KEY.search(value):
        raise InvalidFetchError("key: holds a control character or half a surrogate pair")


def meta(value: Any) -> Any:
    """Return the value as a parser reads it from its JSON, so that it has one JSON.

    Numbers that JSON turns into null are refused, and so is nesting that a parser may not support. What
    cannot be JSON is returned as it is, and refused when the fetch is serialized.
    """
    if value is None or _is_json(value):
        return value
    try:
        text = msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError):
        return value
    try:
        parsed = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidFetchError(f"meta: cannot be JSON: {error}") from None
    _is_json(parsed)
    return parsed


def _is_json(value: Any) -> bool:
    """Return whether the value holds only what a parser makes; raises InvalidFetchError."""
    level, of_parser = _containers([value])
    for _ in range(MAX_META_DEPTH):
        if not level:
            return of_parser
        children = (item.values() if isinstance(item, dict) else item for item in level)
        level, they_are = _containers(itertools.chain.from_iterable(children))
        of_parser = of_parser and they_are
    if level:
        raise InvalidFetchError(f"meta: is nested deeper than {MAX_META_DEPTH} levels")
    return of_parser


def _containers(values: Iterable[Any]) -> tuple[list[Any], bool]:
    """Return the containers among the values, and whether a parser may have made the values.

    Each container comes once: one that holds itself would never end.
    """
    found: dict[int, Any] = {}
    of_parser = True
    for value in values:
        if isinstance(value, dict | list | tuple):
            found[id(value)] = value
            of_parser = of_parser and (not isinstance(value, dict) or _TEXT.issuperset(map(type, value)))
        elif isinstance(value, float) and not math.isfinite(value):
            raise InvalidFetchError(f"meta: holds {value}, which JSON cannot say; leave it out or use a text")
        elif type(value) not in _SCALARS:
            of_parser = False
    return list(found.values()), of_parser
