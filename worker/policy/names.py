"""The names of policy tables: a host, a pattern such as *.cdn.net, or `default`. Pure.

`host_named` parses every host that an operator names, in any form that can be copied from elsewhere.
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
    """Return whether a pattern such as *.cdn.net covers a lane or a pattern. A pattern covers itself."""
    return pattern.startswith(EVERY_HOST_BELOW) and name.endswith(pattern[1:])


def covering(name: str) -> Iterator[str]:
    """Yield every name that covers a lane or a pattern, narrowest first: itself, patterns, `default`."""
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
    """Return whether the table `table` applies to the lane or the table `name`."""
    return table in {DEFAULT, name} or covers(table, name)


def in_shell(name: str) -> str:
    """Return a name quoted for a shell, which would otherwise expand the asterisk of a pattern."""
    return f"'{name}'" if name.startswith(EVERY_HOST_BELOW) else name


def lane_named(name: str) -> str:
    """Return the lane or pattern of a table `[host."NAME"]`. Raises PolicyError."""
    host = name.removeprefix(EVERY_HOST_BELOW)
    if set("/?#") & set(host):
        raise PolicyError(f'[host."{name}"] is not a host name; leave the path out')
    try:
        return name[: len(name) - len(host)] + parse_host(host)
    except UrlError as error:
        raise PolicyError(f'[host."{name}"] {error}') from None


def host_named(text: str) -> str:
    """Return the lane, the pattern or `default` that an operator names.

    Accepts a host, host:port, a URL, an address with or without brackets, a pattern, and `default`. Scheme,
    user, port and path of a URL are ignored, because a lane is a host. Raises PolicyError, which names the
    text (without user and password) and the valid forms.
    """
    stripped = text.strip()
    scheme = _SCHEME.match(stripped)
    authority = _AUTHORITY_END.split(stripped[scheme.end() :], maxsplit=1)[0] if scheme else stripped
    authority = authority.rpartition("@")[2]
    if authority.lower() == DEFAULT and not scheme:
        return DEFAULT
    try:
        if not scheme and _AUTHORITY_END.search(authority):
            raise UrlError("it has a path or a prefix length; leave the path out")  # noqa: TRY301
        pattern = EVERY_HOST_BELOW if authority.startswith(EVERY_HOST_BELOW) else ""
        host = _without_port(authority.removeprefix(pattern))
        if not host or "*" in host:
            raise UrlError("a pattern is *. and a domain, as in *.cdn.net; all hosts are `default`")  # noqa: TRY301
        name = parse_host(host)
        if pattern and (":" in name or name.rpartition(".")[2].isdecimal()):
            raise UrlError("a pattern cannot cover addresses; name each address")  # noqa: TRY301
        if not pattern and name == DEFAULT:
            raise UrlError("`default` stands for all hosts, so a host of this name cannot be named")  # noqa: TRY301
    except UrlError as error:
        shown = authority[:_SHOWN_CHARS] or stripped[:_SHOWN_CHARS]
        raise PolicyError(
            f"{shown!r} does not name a host: {error}. Name a host (api.example.com), an address, a URL,"
            f" a pattern (*.example.com) or {DEFAULT}"
        ) from None
    return pattern + name


def _without_port(authority: str) -> str:
    """Return the host of an authority, without the brackets of an IPv6 address. Raises UrlError."""
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        if not bracket or ":" not in host:
            raise UrlError("the brackets do not hold an IPv6 address; write it like [2606:4700::1111]")
        port = _PORT.fullmatch(rest) if rest else None
        if rest and port is None:
            raise UrlError("the port must be a number")
        return host
    host, colon, port_text = authority.partition(":")
    if not colon or ":" in port_text:
        return authority  # a host, or an IPv6 address without brackets
    if port_text and not (port_text.isascii() and port_text.isdecimal()):
        raise UrlError("the port must be a number")
    return host
