"""The target of a redirect: its Location, parsed as browsers parse it. Pure.

Source: the basic URL parser of https://url.spec.whatwg.org, for http and https. Hosts test their redirects
with browsers, so a Location may be anything that browsers accept. The target is one that `parse_url` accepts.
"""

import re
from urllib.parse import unquote, unquote_to_bytes

from fetchfleet.jobs.contract.urls import DEFAULT_PORTS, FetchUrl, UrlError, parse_url

_CONTROLS_AND_SPACE = "".join(map(chr, range(0x21)))
_NOT_IN_A_URL = str.maketrans("", "", "\t\n\r")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_SLASHES = "/\\"
_AUTHORITY_END = re.compile(r"[/\\?]")
_DOT_SEGMENT = re.compile(r"(?<![^/])(?:\.|%2[Ee]){1,2}(?![^/])")
_DELIMITERS = re.compile(r"[/\\?#@:\[\]]")
# `parse_url` escapes the other characters that are invalid in a URL.
_BYTE_TO_ESCAPE = re.compile(r"[^!-\[\]-~]")


def target_of(base: FetchUrl, location: str) -> FetchUrl:
    """Return the target of a redirect from `base`, without its fragment. Raises UrlError.

    location: the field's value, decoded as ISO 8859-1. Bytes beyond ASCII are percent-encoded unchanged in a
    path and query, and are read as UTF-8 in a host.
    """
    reference = location.strip(_CONTROLS_AND_SPACE).translate(_NOT_IN_A_URL)
    if not reference:
        raise UrlError("the Location is empty; the host must send the URL of the target")
    rest, scheme = reference.partition("#")[0], base.scheme
    if (match := _SCHEME.match(rest)) is not None:
        scheme, rest = match[1].lower(), rest[match.end() :]
        if scheme not in DEFAULT_PORTS:
            raise UrlError("not an http or https URL; write http://host/path or https://host/path")
    after_slashes = rest.lstrip(_SLASHES)
    if len(rest) - len(after_slashes) < 2 and scheme == base.scheme:
        return parse_url(_resolved(base, rest))
    end = match.start() if (match := _AUTHORITY_END.search(after_slashes)) else len(after_slashes)
    authority = _decoded(after_slashes[:end])
    return parse_url(f"{scheme}://{authority}{_escaped(after_slashes[end:])}")


def _resolved(base: FetchUrl, reference: str) -> str:
    """Return the URL of a path and query within the origin of `base` (RFC 3986 §5.2)."""
    root_end = base.text.index("/", len(base.scheme) + len("://"))
    root, base_path = base.text[:root_end], base.text[root_end:].partition("?")[0]
    escaped = _escaped(reference)
    match escaped[:1]:
        case "/":
            return root + escaped
        case "?":
            return root + base_path + escaped
        case "":
            return base.text
        case _:
            return root + base_path[: base_path.rindex("/") + 1] + escaped


def _escaped(target: str) -> str:
    """Return a path and query with slashes for backslashes, and other than printable ASCII percent-encoded.

    Percent-encoded dots are decoded in dot segments, which `parse_url` then resolves.
    """
    path, mark, query = target.partition("?")
    path = _DOT_SEGMENT.sub(lambda match: unquote(match[0]), path.replace("\\", "/"))
    target = path + mark + query
    return _BYTE_TO_ESCAPE.sub(lambda match: f"%{ord(match[0]):02X}", target)


def _decoded(authority: str) -> str:
    """Return a host and port as text. Raises UrlError if they are not UTF-8, or escape a delimiter."""
    try:
        text = unquote_to_bytes(authority.encode("latin-1")).decode()
    except UnicodeDecodeError:
        raise UrlError("the host is not UTF-8; write it in ASCII (punycode)") from None
    if _DELIMITERS.findall(text) != _DELIMITERS.findall(authority):
        raise UrlError("the host has a percent-encoded delimiter, which is invalid in a host")
    return text
