"""The sort keys of URLs in archive indexes: Sort-friendly URI Reordering Transform (SURT). Pure.

The rules, and their order, are those of the Internet Archive's package `surt`: the host reversed and without
`www`, everything in lower case, the query sorted, no session IDs, no default port, no trailing slash.
"""

import re
from functools import lru_cache
from urllib.parse import quote_from_bytes, unquote_to_bytes

_REPEATED_SCHEME = re.compile(rb"(https?://)+")
_URL = re.compile(rb"(?P<scheme>[^:/?#]+)://(?P<netloc>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?")
_PORT = re.compile(rb":([0-9]*)$")
_DEFAULT_PORTS = {b"http": 80, b"https": 443}

_UNESCAPED = r"""!"$&'()*+,-./:;<=>?@[\]^_`{|}~"""
"""The characters that stay as they are, besides letters and digits."""

_PLAIN_URL = re.compile(
    rb"(?P<scheme>https?)://(?P<netloc>[^/?#]*)"
    rb"""(?P<path>(?:/(?!\.\.?(?:/|\Z))[A-Za-z0-9!"$&')*+,.:;<=>@\[\]^_`{|}~\\-]+)+)"""
)
"""A URL without a query, whose path only becomes lower case: no escapes, empty segments or session IDs."""

_IPV4 = re.compile(rb"([1-9][0-9]*|0[0-7]*)(\.[0-9]+){0,3}")
_WWW = re.compile(rb"www\d*\.")

_PATH_SESSIONS = (
    re.compile(rb"(.*/)\((?:[a-z]\([0-9a-z]{24}\))+\)/([^?]+\.aspx.*)", re.IGNORECASE),
    re.compile(rb"(.*/)\([0-9a-z]{24}\)/([^?]+\.aspx.*)", re.IGNORECASE),
)
_QUERY_SESSIONS = tuple(
    re.compile(b"(.*)(?:%b)(?:&(.*))?" % session, re.IGNORECASE)
    for session in (
        b"jsessionid=[0-9a-z]{32}",
        b"phpsessid=[0-9a-z]{32}",
        b"sid=[0-9a-z]{32}",
        b"ASPSESSIONID[a-z]{8}=[a-z]{24}",
        b"cfid=[^&]+&cftoken=[^&]+",
    )
)


def surt(url: str) -> str:
    """Return the key of an http or https URL in canonical form; the URL itself if it is another."""
    plain = _PLAIN_URL.fullmatch(url.encode())
    if plain:
        return (_host_key(plain["scheme"], plain["netloc"]) + b")" + plain["path"].lower()).decode()
    text = _REPEATED_SCHEME.sub(lambda found: found[1], url.encode().strip(), count=1)
    parts = _URL.fullmatch(text.partition(b"#")[0])
    if parts is None:
        return url
    host = _host_key(parts["scheme"], parts["netloc"])
    return (host + b")" + _path(parts["path"]) + _query(parts["query"] or b"")).decode()


@lru_cache(1024)
def _host_key(scheme: bytes, netloc: bytes) -> bytes:
    netloc = netloc.rpartition(b"@")[2].rstrip(b":")
    port = _PORT.search(netloc)
    host = netloc[: port.start()] if port else netloc
    host = _host(host.strip(b"[]").lower())
    key = b",".join(reversed(host.split(b".")))
    if port and int(port[1]) not in {0, _DEFAULT_PORTS.get(scheme)}:
        key += b":%d" % int(port[1])
    return key


def _host(host: bytes) -> bytes:
    host = _unescaped(host).replace(b"..", b".").strip(b".")
    if _IPV4.fullmatch(host) and (address := _ipv4(host)) is not None:
        return b".".join(b"%d" % byte for byte in address.to_bytes(4, "big"))
    host = _escaped(host.lower())
    found = _WWW.match(host)
    return host[found.end() :] if found else host


def _path(path: bytes) -> bytes:
    kept: list[bytes] = []
    for part in _unescaped(path).split(b"/")[1:]:
        if part == b".." and kept:
            kept.pop()
        elif part != b".":
            kept.append(part)
    *folders, name = kept or [b""]
    path = _escaped(b"/" + b"".join(folder + b"/" for folder in folders if folder) + name).lower()
    for session in _PATH_SESSIONS:
        if found := session.fullmatch(path):
            path = found[1] + found[2]
    return path[:-1] if path.endswith(b"/") and len(path) > 1 else path


def _query(query: bytes) -> bytes:
    query = _escaped(_unescaped(query))
    for session in _QUERY_SESSIONS:
        if found := session.fullmatch(query):
            query = found[1] + (found[2] or b"")
    arguments = sorted(argument.split(b"=", 1) for argument in query.lower().split(b"&"))
    query = b"&".join(map(b"=".join, arguments)) if len(query) > 1 else query.lower()
    return b"?" + query if query else b""


def _unescaped(text: bytes) -> bytes:
    """Undo percent-encoding, also if it was applied several times."""
    while (once := unquote_to_bytes(text)) != text:
        text = once
    return text


def _escaped(text: bytes) -> bytes:
    return quote_from_bytes(text, safe=_UNESCAPED).encode()


def _ipv4(host: bytes) -> int | None:
    """Return the IPv4 address that inet_aton(3) reads, which may have fewer than four parts, or None."""
    if host.isdigit():
        return int(host) & 0xFFFFFFFF
    try:
        *first, last = [int(part, 8 if part.startswith(b"0") else 10) for part in host.split(b".")]
    except ValueError:  # not octal
        return None
    if max(first) > 0xFF or last >= 1 << 8 * (4 - len(first)):
        return None
    return last + sum(number << 8 * (3 - place) for place, number in enumerate(first))
