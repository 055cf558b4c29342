"""The path of a body: the `dest` of its fetch, its expanded `name`, or one derived from the fetch ID.

Without I/O: a response is read only as far as its header.
"""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from fetchfleet.jobs.contract import names
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.ids import path_of, place_of
from fetchfleet.jobs.contract.urls import DEFAULT_PORTS, origin_of_url, parse_url
from fetchfleet.worker.errors import BadDestError
from fetchfleet.worker.sink.base import HttpExchange
from fetchfleet.worker.sink.content_names import ContentName, content_name

suffixed = names.suffixed


def path_for(entry: Entry, exchange: HttpExchange | None, sha256: str | None) -> str:
    """Return the path of a body, relative to the out folder.

    exchange: that of the body; required if the name has `{stem}` or `{ext}`. sha256: the body's digest, if
    known. Raises BadDestError if `meta` lacks a value of the name, or the path is too long.
    """
    fetch = entry.fetch
    if fetch.name is None:
        return fetch.dest or path_of(entry.id)
    template = names.parse(fetch.name)
    content = None
    if not names.OF_RESPONSE.isdisjoint(template.fields):
        assert exchange is not None
        content = _content_name(entry, exchange)
    try:
        values = {field: _value(field, entry, content, sha256) for field in template.fields}
        return names.expand(template, values)
    except (ValueError, OverflowError) as error:  # too long, or no date
        raise BadDestError(str(error)) from None


def uses_meta(fetch: Fetch) -> bool:
    """Return whether the name of the fetch has a value of `meta`."""
    return fetch.name is not None and names.META in fetch.name


def check(entry: Entry) -> None:
    """Raise BadDestError if `meta` lacks a value of the name, before a request is sent."""
    if entry.fetch.name is not None:
        for field in names.parse(entry.fetch.name).fields:
            if field.startswith(names.META):
                _meta_text(entry.fetch.meta, field)


def known_path(entry: Entry, exchange: HttpExchange | None = None) -> str | None:
    """Return the path of the body if it is known before the body is; None if it depends on the body.

    exchange: None before the response. Raises BadDestError, as `path_for`.
    """
    fetch = entry.fetch
    fields = names.parse(fetch.name).fields if fetch.name is not None else frozenset[str]()
    if exchange is None and not names.OF_RESPONSE.isdisjoint(fields):
        return None
    return None if "sha256" in fields and fetch.sha256 is None else path_for(entry, exchange, fetch.sha256)


def is_content_addressed(entry: Entry) -> bool:
    """Return whether the path has the digest of the body, so that equal bodies have one path."""
    return entry.fetch.name is not None and "sha256" in names.parse(entry.fetch.name).fields


def _value(field: str, entry: Entry, content: ContentName | None, sha256: str | None) -> str:
    """Return the value of a placeholder."""
    fetch = entry.fetch
    match field:
        case "host":
            return _host(origin_of_url(fetch.url))
        case "path":
            return fetch.url[fetch.url.index("/", len("https://")) :].partition("?")[0]
        case "stem" | "ext":
            assert content is not None
            return content.stem if field == "stem" else content.extension
        case "id":
            return entry.id
        case "n":
            return str(place_of(entry.id))
        case "sha256":
            assert sha256 is not None
            return sha256
        case "date":
            return datetime.fromtimestamp(entry.submitted_ms / 1000, UTC).date().isoformat()
        case _:
            return _meta_text(fetch.meta, field)


@lru_cache(maxsize=4096)
def _host(origin: str) -> str:
    """Return the host, and a port other than the default one after a `+`, as wget does on Windows."""
    parsed = parse_url(origin)
    host = parsed.host.replace(":", "-")
    return host if parsed.port == DEFAULT_PORTS[parsed.scheme] else f"{host}+{parsed.port}"


def _content_name(entry: Entry, exchange: HttpExchange) -> ContentName:
    answer = exchange.answer
    if answer.status >= 300:  # 416 for a body that was complete already: its header is that of an error page
        return content_name(exchange.request.url, entry.fetch.url)
    disposition, content_type = answer.header("content-disposition"), answer.header("content-type")
    return content_name(exchange.request.url, entry.fetch.url, disposition, content_type)


def _meta_text(meta: Any, field: str) -> str:
    """Return a value of `meta` as text. Raises BadDestError if it is missing or not a scalar."""
    key = field.removeprefix(names.META)
    value = meta.get(key) if isinstance(meta, dict) else None
    match value:
        case str():
            return value
        case bool() | int() | float():
            return msgspec.json.encode(value).decode()
        case None:
            raise BadDestError(f"name: meta has no {key!r}")
        case _:
            raise BadDestError(f"name: meta's {key!r} is not a string, number or boolean")
