"""Checks of the fields of a fetch. Each raises InvalidFetchError, which names the field. Pure."""

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
    """The methods that a fetch may have."""

    GET = "GET"
    HEAD = "HEAD"
    POST = "POST"
    PUT = "PUT"
    PATCH = "PATCH"
    DELETE = "DELETE"
    OPTIONS = "OPTIONS"


class IfExists(StrEnum):
    """The treatment of a file that exists at the path of a body."""

    REPLACE = "replace"
    """Replace it atomically."""
    SKIP = "skip"
    """Keep it and send no request; the fetch ends as `unchanged`."""
    FAIL = "fail"
    """Fail with the reason `exists`."""
    SUFFIX = "suffix"
    """Keep it, and store the body beside it, unless both are the same bytes."""


class Fallback(StrEnum):
    """The result of a fetch whose host is down."""

    NONE = "none"
    """The fetch fails."""
    STALE = "stale"
    """The fetch ends as `unchanged`, with the body that was stored before."""


METHODS = frozenset(Method)
_IF_EXISTS = tuple(IfExists)
_REPLACES = (None, IfExists.REPLACE)
_FALLBACKS = tuple(Fallback)
BODYLESS_METHODS = frozenset({Method.GET, Method.HEAD, Method.OPTIONS})
IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})  # RFC 9110 §9.2.2
MAX_HEADER_BYTES = 16 * 1024
MAX_BODY_BYTES = 1 << 20
MAX_BYTES = (1 << 63) - 1
"""Largest `max_bytes`: the largest signed 64-bit integer."""

MAX_SEGMENTS = 16
"""Most ranges in which one body is received at once."""

MAX_DEST_BYTES = 1024
MAX_DEST_PART_BYTES = 255
MAX_KEY_BYTES = 200
MAX_META_DEPTH = 100

# The worker sets the fields of the connection and of message framing (RFC 9110 §7.6.1, RFC 9112 §6).
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
# RFC 9110 §5.5, without obs-text: httpx encodes values as ASCII.
_FIELD_VALUE = re.compile(r"(?:[!-~]+(?:[\t ]+[!-~]+)*)?")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_TEXT = frozenset({str})
_SCALARS = frozenset({str, int, float, bool, type(None)})
_INVALID_IN_KEY = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_INVALID_IN_PATH = re.compile(rf"[\\{UNSAFE_CHARACTERS}]")


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
    """Require valid names and values (RFC 9110 §5), no reserved field, and at most MAX_HEADER_BYTES."""
    for name, text in value.items():
        if not _TOKEN.fullmatch(name):
            # After a missing colon the name has the value, which may be secret: show its first token only.
            first_token = found[0] if (found := _TOKEN.match(name)) else ""
            raise InvalidFetchError(f"headers: a name that begins with {first_token!r} is invalid")
        if not _FIELD_VALUE.fullmatch(text):
            raise InvalidFetchError(
                f"headers: the value of {name} has a line break, a control or non-ASCII character,"
                " or a leading or trailing space"
            )
        if name.lower() in RESERVED_HEADERS or name.lower().startswith("proxy-"):
            raise InvalidFetchError(f"headers: {name} is set by the worker; leave it out")
    size = sum(len(name) + len(text) + 4 for name, text in value.items())
    if size > MAX_HEADER_BYTES:
        raise InvalidFetchError(f"headers: have {size} bytes; the limit is {MAX_HEADER_BYTES}")


def body(value: str) -> None:
    """Require text of at most MAX_BODY_BYTES."""
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise InvalidFetchError("body: has a lone surrogate, which UTF-8 cannot encode; use body_base64")
    if len(value.encode()) > MAX_BODY_BYTES:
        raise InvalidFetchError(f"body: has more than {MAX_BODY_BYTES} bytes; use body_file")


def dest(value: str) -> None:
    """Require a relative path that stays in the out folder."""
    relative_path("dest", value, "out")


def relative_path(field: str, value: str, folder: str) -> None:
    """Require names joined by single slashes, without `..`, reserved names or unsafe characters."""
    if value.startswith("/"):
        raise InvalidFetchError(
            f"{field}: {value!r} is absolute; give a path relative to the {folder} folder"
        )
    if found := _INVALID_IN_PATH.search(value):
        raise InvalidFetchError(
            f"{field}: has {found[0]!a}; leave out backslashes and characters that control or hide text"
        )
    if len(value.encode()) > MAX_DEST_BYTES:
        raise InvalidFetchError(f"{field}: has more than {MAX_DEST_BYTES} bytes; shorten it")
    for part in value.split("/"):
        if part == "..":
            raise InvalidFetchError(f"{field}: {value!r} leaves the {folder} folder; leave out the ..")
        if part in {"", "."}:
            raise InvalidFetchError(f"{field}: {value!r} has an empty part; join names by single slashes")
        if part.startswith(".fetchfleet"):
            raise InvalidFetchError(f"{field}: {part!r} is reserved for the workers; use another name")
        if len(part.encode()) > MAX_DEST_PART_BYTES:
            raise InvalidFetchError(f"{field}: a name has more than {MAX_DEST_PART_BYTES} bytes; shorten it")


def if_exists(value: str | None, with_dest: str | None, with_name: str | None) -> str | None:
    """Return a value of IfExists, None for the default; all but REPLACE need a dest or a name."""
    if value is not None and value not in _IF_EXISTS:
        raise InvalidFetchError(f"if_exists: {value!r} is not one of {', '.join(IfExists)}")
    if with_name is not None:
        return None if value == IfExists.SUFFIX else value
    if value not in _REPLACES and with_dest is None:
        raise InvalidFetchError(f"if_exists: {value!r} needs a dest; set one, or leave if_exists out")
    return None if value == IfExists.REPLACE else value


class Dests:
    """The dests of one list of fetches, to refuse fetches that would replace each other's bodies.

    Two fetches may share a dest if both set if_exists to skip, fail or suffix, or if they have the same key
    and are therefore one fetch. noun: name of an element of the list in errors. max_dests: number of dests to
    remember, as hashes of 8 bytes; later dests are compared with these only.
    """

    def __init__(self, noun: str, max_dests: int = sys.maxsize) -> None:
        self._noun = noun
        self._max_dests = max_dests
        self._first: dict[int, int] = {}
        self._keyed: set[int] = set()

    def add(self, number: int, dest: str, if_exists: str | None, key: str | None) -> None:
        """Add a dest. Raises InvalidFetchError, which names the earlier fetch by number, on a conflict."""
        keyed = None if key is None else hash((dest, key))
        first = self.add_hash(number, hash(dest), keyed, keeps=if_exists not in _REPLACES)
        if first is not None:
            raise InvalidFetchError(
                f"dest: {dest!r} is also the dest of {self._noun} {first};"
                " choose another, or set if_exists to skip, fail or suffix on both"
            )

    def add_hash(self, number: int, dest: int, keyed: int | None, *, keeps: bool) -> int | None:
        """Add the hash of a dest; return the number of the earlier fetch on a conflict.

        keyed: hash of dest and key. keeps: an existing file is kept.
        """
        if keyed is not None and keyed in self._keyed:
            return None
        this = number * 2 + keeps
        first = self._first.get(dest, this)
        if first != this and not first & this & 1:
            return first // 2
        if len(self._first) < self._max_dests:
            self._first.setdefault(dest, this)
            if keyed is not None:
                self._keyed.add(keyed)
        return None


def sha256(value: str) -> str:
    """Return the digest in lower case."""
    if not _SHA256.fullmatch(value):
        raise InvalidFetchError("sha256: must be 64 hex digits")
    return value.lower()


def max_bytes(value: int | None) -> None:
    """Require 1 to MAX_BYTES, if set."""
    if value is not None and (isinstance(value, bool) or not 1 <= value <= MAX_BYTES):
        raise InvalidFetchError(f"max_bytes: must be 1 to {MAX_BYTES}, got {value}")


def segments(value: int | None) -> None:
    """Require 1 to MAX_SEGMENTS, if set."""
    if value is not None and (isinstance(value, bool) or not 1 <= value <= MAX_SEGMENTS):
        raise InvalidFetchError(f"segments: must be 1 to {MAX_SEGMENTS}, got {value}")


def decode(with_headers: Mapping[str, str], *, wanted: bool) -> None:
    """Refuse `decode` with a Range header: part of a compressed body cannot be decoded."""
    if wanted and any(name.lower() == "range" for name in with_headers):
        raise InvalidFetchError("decode: cannot decode part of a body; leave out decode or the Range header")


def deadline(value_s: float | None, max_s: float) -> None:
    """Require more than 0 and at most max_s, if set."""
    if value_s is not None and (isinstance(value_s, bool) or not 0 < value_s <= max_s):
        raise InvalidFetchError(f"deadline_s: must be more than 0 and at most {max_s:.0f}, got {value_s}")


def fallback(value: str | None) -> None:
    """Require a value of Fallback, if set."""
    if value is not None and value not in _FALLBACKS:
        raise InvalidFetchError(f"fallback: {value!r} is not one of {', '.join(Fallback)}")


def key(value: str) -> None:
    """Require 1 to MAX_KEY_BYTES without control characters."""
    if not value or len(value.encode(errors="surrogatepass")) > MAX_KEY_BYTES:
        raise InvalidFetchError(f"key: must have 1 to {MAX_KEY_BYTES} bytes in UTF-8")
    if _INVALID_IN_KEY.search(value):
        raise InvalidFetchError("key: has a control character or a lone surrogate; leave it out")


def meta(value: Any) -> Any:
    """Return the value as decoded from its own JSON, so that equal values have the same JSON.

    Raises InvalidFetchError for NaN, infinities and deep nesting. A value that cannot be JSON is returned
    unchanged; serializing the fetch refuses it.
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
    """Return whether a JSON decoder could have returned the value. Raises InvalidFetchError, as `meta`."""
    level, is_json = _containers([value])
    for _ in range(MAX_META_DEPTH):
        if not level:
            return is_json
        children = (item.values() if isinstance(item, dict) else item for item in level)
        level, children_are_json = _containers(itertools.chain.from_iterable(children))
        is_json = is_json and children_are_json
    if level:
        raise InvalidFetchError(f"meta: is nested more than {MAX_META_DEPTH} levels deep")
    return is_json


def _containers(values: Iterable[Any]) -> tuple[list[Any], bool]:
    """Return the containers among the values, and whether a JSON decoder could have returned the values.

    Each container is returned once, because a container may contain itself.
    """
    containers: dict[int, Any] = {}
    is_json = True
    for value in values:
        if isinstance(value, dict | list | tuple):
            containers[id(value)] = value
            is_json = is_json and (not isinstance(value, dict) or _TEXT.issuperset(map(type, value)))
        elif isinstance(value, float) and not math.isfinite(value):
            raise InvalidFetchError(f"meta: has {value}, which JSON does not support; use a string or null")
        elif type(value) not in _SCALARS:
            is_json = False
    return list(containers.values()), is_json
