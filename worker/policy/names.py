"""The names of policy tables: a host, a pattern such as *.cdn.net, or `default`. Pure.

Every host that an operator names goes through `host_named`, in whatever form it was copied.
"""

import re
from collections.abc import Iterator

from fetchfleet.jobs.contract.urls import UrlError, parse_host
from fetchfleet.worker.policy.model import PolicyError

DEFAULT = "default"
EVERY_HOST_BELOW = "*."

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_AUTHORITY_END = re.compile(r"[/?#\\]")
_PORT = re.compile(r":([0-9]*)")
_SHOWN_CHARS = 80


def covers(pattern: str, name: str) -> bool:
    """Return whether a pattern such as *.cdn.net covers a lane, or a narrower pattern."""
    return pattern.startswith(EVERY_HOST_BELOW) and name.endswith(pattern[1:])


def covering(name: str) -> Iterator[str]:
    """Yield every name that covers a lane or a pattern, the narrowest first: itself, patterns, `default`."""
    yield name
    if name == DEFAULT:
        return
    _, _, above = name.partition(".")
    while above:
        if f"*.{above}" != name:
            yield f"*.{above}"
        _, _, above = above.partition(".")
    yield DEFAULT


def concerns(table: str, name: str) -> bool:
    """Return whether the table of that name holds for a lane or for a narrower table."""
    return table in {DEFAULT, name} or covers(table, name)


def in_shell(name: str) -> str:
    """Return a name as it is typed in a shell, which would expand the asterisk of a pattern."""
    return f"'{name}'" if name.startswith(EVERY_HOST_BELOW) else name


def lane_named(name: str) -> str:
    """Return the lane or pattern that the name of a file's table stands for; PolicyError if none can."""
    host = name.removeprefix(EVERY_HOST_BELOW)
    if set("/?#") & set(host):
        raise PolicyError(f'[host."{name}"] is no host name; leave the path out')
    try:
        return name[: len(name) - len(host)] + parse_host(host)
    except UrlError as error:
        raise PolicyError(f'[host."{name}"] {error}') from None


def host_named(text: str) -> str:
    """Return the lane, the pattern or `default` that an operator means by a text.

    Takes a host, host:port, a URL, an address with or without brackets, a pattern, and `default`. A lane is
    a host, so scheme, user, port and path of a URL do not count. Raises PolicyError, which names the text
    (without a user or password) and what to write.
    """
    given = text.strip()
    scheme = _SCHEME.match(given)
    authority = _AUTHORITY_END.split(given[scheme.end() :], maxsplit=1)[0] if scheme else given
    authority = authority.rpartition("@")[2]
    if authority.lower() == DEFAULT and not scheme:
        return DEFAULT
    try:
        if not scheme and _AUTHORITY_END.search(authority):
            raise UrlError("it has a path or a network's length; leave the path out")  # noqa: TRY301
        pattern = EVERY_HOST_BELOW if authority.startswith(EVERY_HOST_BELOW) else ""
        host = _without_port(authority.removeprefix(pattern))
        if not host or "*" in host:
            raise UrlError("a pattern is *. and a domain, as in *.cdn.net; every host is default")  # noqa: TRY301
        name = parse_host(host)
        if pattern and (":" in name or name.rpartition(".")[2].isdecimal()):
            raise UrlError("an address has no hosts below it; name each address")  # noqa: TRY301
        if not pattern and name == DEFAULT:
            raise UrlError("that name stands for every host, so a host with it cannot be named")  # noqa: TRY301
    except UrlError as error:
        shown = authority[:_SHOWN_CHARS] or given[:_SHOWN_CHARS]
        raise PolicyError(
            f"{shown!r} names no host: {error}. Name a host (api.example.com), an address, a URL,"
            f" a pattern (*.example.com) or {DEFAULT}"
        ) from None
    return pattern + name


def _without_port(authority: str) -> str:
    """Return the host of an authority, an IPv6 address without brackets; raises UrlError."""
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        if not bracket or ":" not in host:
            raise UrlError("what is in brackets is no IPv6 address; write [2606:4700::1111]")
        port = _PORT.fullmatch(rest) if rest else None
        if rest and port is None:
            raise UrlError("a port is digits")
        return host
    host, colon, port_text = authority.partition(":")
    if not colon or ":" in port_text:
        return authority  # a host, or an IPv6 address without brackets
    if port_text and not (port_text.isascii() and port_text.isdecimal()):
        raise UrlError("a port is digits")
    return host
