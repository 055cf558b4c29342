"""Parser of every URL that enters the fleet: it returns a canonical `FetchUrl`, or raises `UrlError`. Pure.

Other code relies on three properties. Two spellings of a host are one lane. Any other parser finds the same
host in the canonical text. The text cannot end a request line or a header. The egress policy checks the
address when the worker connects.
"""

import re
from functools import lru_cache
from ipaddress import IPv6Address
from typing import NamedTuple
from urllib.parse import quote

import idna

MAX_URL_BYTES = 8192
MAX_HOST_BYTES = 253  # RFC 1035 §2.3.4, without the trailing dot
MAX_LABEL_BYTES = 63
MAX_PORT = 65535
DEFAULT_PORTS = {"http": 80, "https": 443}

# A batch has many URLs of few origins.
_CACHED_AUTHORITIES = 4096
# Part of a host that errors show: they go to logs and terminals.
_SHOWN_CHARS = 80

# Control characters (C0, DEL, C1), space, backslash (a slash in browsers), lone surrogates.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\x9f\\\ud800-\udfff]")

# RFC 3986 §3, narrowed: http or https, no userinfo. The port may be empty (§3.2.3).
_SPLIT = re.compile(
    r"([Hh][Tt][Tt][Pp][Ss]?)://"
    r"([^/?#@:\[\]]+|\[[^/?#@\]]*\])"  # host, or [IPv6]
    r"(?::([0-9]*))?"  # port
    r"(/[^?#]*)?"  # path
    r"(\?[^#]*)?"  # query
    r"(?:#.*)?"  # fragment: not sent
)
# Only the authority of such a URL needs a check: its path and query have no unsafe characters.
_PLAIN = re.compile(
    r"((https?)://([a-z0-9.-]+)(?::([0-9]+))?)/[A-Za-z0-9\-._~!$&'()*+,;=:@/]*(?:\?[A-Za-z0-9\-._~!$&'()*+,;=:@/?]*)?"
)
_AUTHORITY_END = re.compile(r"[/?#]")

# Characters that RFC 3986 §3.3 and §3.4 exclude from path and query, and a `%` without two hex digits.
# Brackets are safe: `?ids[]=1` is common, and servers accept it.
_UNSAFE = re.compile(r"[^A-Za-z0-9\-._~!$&'()*+,;=:@/?\[\]%]|%(?![0-9A-Fa-f]{2})")

# Labels of host names in use: underscores, and hyphens at any place, are allowed.
_DNS_NAME = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
_ZERO_WIDTH_JOINERS = "\u200c\u200d"
# WHATWG URL, "ends in a number checker": such a host is an IPv4 address or invalid.
_ENDS_IN_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
# Dotted decimal without leading zeros, as ipaddress.IPv4Address accepts it in ten times the time.
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?:{_OCTET}\.){{3}}{_OCTET}")


class UrlError(ValueError):
    """An invalid URL: the error and the remedy. The message never quotes userinfo, path or query."""


class FetchUrl(NamedTuple):
    """A canonical http or https URL, from `parse_url`."""

    text: str
    """The URL to request: without fragment and default port, with a path."""
    scheme: str
    """http or https."""
    host: str
    """Lower-case ASCII name without trailing dot, or IP address without brackets; IPv4 if IPv4-mapped."""
    port: int
    """Port of the URL, or the default port of the scheme."""

    @property
    def origin_with_port(self) -> str:
        """`scheme://host:port`, with the port even if it is the default."""
        return f"{self.scheme}://{_bracketed(self.host)}:{self.port}"


def parse_url(text: str) -> FetchUrl:
    """Return the canonical form of an absolute http or https URL; raises `UrlError` for any other text.

    Non-ASCII characters of path and query become percent-encoded UTF-8, percent-escapes stay unchanged, and
    dot segments are removed (RFC 3986 §6.2.2.3). Parsing the result again does not change it.
    """
    _refuse_long(text)
    _refuse_forbidden(text)
    parts = _SPLIT.fullmatch(text)
    if parts is None:
        raise UrlError(_diagnosis(text))
    raw_scheme, raw_host, raw_port, path, query = parts.groups("")
    prefix, scheme, host, port = _authority(raw_scheme, raw_host, raw_port)
    if "/." in path:
        path = _without_dot_segments(path)
    target = _UNSAFE.sub(lambda unsafe: quote(unsafe[0], safe=""), (path or "/") + query)
    canonical = prefix + target
    _refuse_long(canonical)
    return FetchUrl(canonical, scheme, host, port)


def canonical_url(text: str) -> str:
    """Return `parse_url(text).text`, faster if the URL is canonical already."""
    plain = _PLAIN.fullmatch(text)
    if plain is not None and len(text) <= MAX_URL_BYTES and "/." not in text:
        origin, *parts = plain.groups("")
        if _authority(*parts)[0] == origin:
            return text
    return parse_url(text).text


def parse_host(text: str) -> str:
    """Return the canonical form of a host, as `FetchUrl.host`; raises `UrlError`.

    An IPv6 address may have brackets.
    """
    if ":" in text:
        return _ipv6(text.removeprefix("[").removesuffix("]"))
    if not text:
        raise UrlError("no host; write a name or an address")
    if found := _FORBIDDEN.search(text):
        raise UrlError(f"{found[0]!a} in the host; remove it")
    return _name_or_ipv4(text)


def same_origin(a: FetchUrl, b: FetchUrl) -> bool:
    """Return whether scheme, host and port are all equal (RFC 6454 §5)."""
    return a[1:] == b[1:]


def shown_origin(text: str) -> str:
    """Return the origin of a URL, with its port, for messages: the rest of the URL may be secret."""
    try:
        return parse_url(text).origin_with_port
    except UrlError:
        return "(unreadable URL)"


def _refuse_long(text: str) -> None:
    """Raise UrlError for more than MAX_URL_BYTES characters; the canonical form is ASCII."""
    if len(text) > MAX_URL_BYTES:
        raise UrlError(f"longer than {MAX_URL_BYTES} bytes; shorten it, or move data to the body")


def _refuse_forbidden(text: str) -> None:
    found = _FORBIDDEN.search(text)
    if found is not None:
        raise UrlError(f"{found[0]!a} at position {found.start()}; percent-encode or remove it")


def _diagnosis(text: str) -> str:
    """Return the error of a text that `_SPLIT` does not match."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in DEFAULT_PORTS:
        return "not an http or https URL; write http://host/path or https://host/path"
    authority = _AUTHORITY_END.split(rest, maxsplit=1)[0]
    if "@" in authority:
        return "a user or password before the host; send an Authorization header instead"
    if not authority or authority.startswith(":"):
        return "no host; write http://host/path or https://host/path"
    if "[" in authority and "]" not in authority:
        return "a bracket without its end; write an IPv6 host as [2606:4700::1111]"
    return "no valid host and port after ://; write host or host:port, the port in digits"


@lru_cache(maxsize=_CACHED_AUTHORITIES)
def _authority(raw_scheme: str, raw_host: str, raw_port: str) -> tuple[str, str, str, int]:
    """Return the canonical `(scheme://host[:port], scheme, host, port)`."""
    scheme = raw_scheme.lower()
    host = _ipv6(raw_host[1:-1]) if raw_host.startswith("[") else _name_or_ipv4(raw_host)
    default = DEFAULT_PORTS[scheme]
    digits = raw_port.lstrip("0")
    if raw_port and (not digits or len(digits) > len(str(MAX_PORT)) or int(digits) > MAX_PORT):
        raise UrlError(f"port {digits[:_SHOWN_CHARS] or 0} does not exist; use 1 to {MAX_PORT}")
    port = int(digits) if digits else default
    suffix = "" if port == default else f":{port}"
    return f"{scheme}://{_bracketed(host)}{suffix}", scheme, host, port


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _ipv6(inner: str) -> str:
    """Return the RFC 5952 text of an IPv6 literal, or the IPv4 address if it is IPv4-mapped.

    `::ffff:192.0.2.1` and 192.0.2.1 are the same host (RFC 4291 §2.5.5.2), so they have one lane.
    """
    if "%" in inner:
        raise UrlError("an IPv6 zone ID, which is valid on one machine only; remove it")
    try:
        address = IPv6Address(inner)
    except ValueError:
        raise UrlError(f"{_shown(inner)} is not an IPv6 address; write it as 2606:4700::1111") from None
    return str(address.ipv4_mapped or address)


def _name_or_ipv4(raw_host: str) -> str:
    """Return the host in lower-case ASCII without trailing dot.

    ASCII labels stay unchanged, A-labels (xn--) included. Other labels become A-labels (UTS 46).
    """
    host = raw_host.lower()
    if not raw_host.isascii():
        try:
            # UTS 46 maps full-width forms, circled digits and ideographic dots to ASCII. Its input is not
            # lower-cased, because str.lower() and UTS 46 differ for a final sigma.
            labels = idna.uts46_remap(raw_host, std3_rules=False).split(".")
            host = ".".join(label if label.isascii() else _a_label(label) for label in labels)
        except Exception as error:  # idna raises exceptions without a common base
            raise UrlError(f"host {_shown(host)} is not a valid host name; check its spelling") from error
    host = host.removesuffix(".")
    if len(host) > MAX_HOST_BYTES:
        raise UrlError(f"the host is longer than {MAX_HOST_BYTES} bytes, the limit of DNS; shorten it")
    if _DNS_NAME.fullmatch(host) is None:
        raise UrlError(f"host {_shown(host)} is not a DNS name; each label must be 1 to 63 of a-z 0-9 - _")
    if _ENDS_IN_NUMBER.fullmatch(host) and not _IPV4.fullmatch(host):
        raise UrlError(f"host {_shown(host)} is not an IPv4 address in dotted decimal; write it as 192.0.2.1")
    return host


def _a_label(label: str) -> str:
    """Return the A-label of a mapped label (UTS 46 §4.1, with CheckJoiners and CheckBidi).

    As in browsers, symbols such as emoji are accepted: UTS 46 allows them, IDNA 2008 does not. Raises
    ValueError, or an exception of idna.
    """
    if len(label) > MAX_LABEL_BYTES or label.startswith("xn--"):  # the codec is quadratic
        raise ValueError("the label is too long, or begins with xn-- and is not ASCII")
    idna.check_initial_combiner(label)
    idna.check_bidi(label)
    for place, character in enumerate(label):
        if character in _ZERO_WIDTH_JOINERS and not idna.valid_contextj(label, place):
            raise ValueError("a zero-width joiner is not allowed at this place")
    return f"xn--{label.encode('punycode').decode('ascii')}"


def _shown(host: str) -> str:
    return ascii(host[:_SHOWN_CHARS])


def _without_dot_segments(path: str) -> str:
    """Return a path that begins with a slash without its dot segments (RFC 3986 §5.2.4)."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in {".", ".."}:
        kept.append("")
    return "/" + "/".join(kept)


def lane_of_url(canonical_url: str) -> str:
    """Return the lane of a canonical URL: its host, an IPv6 address without brackets."""
    return _lane_of_origin(canonical_url[: canonical_url.index("/", len("https://"))])


@lru_cache(maxsize=4096)
def _lane_of_origin(origin: str) -> str:
    authority = origin.partition("://")[2]
    if authority.startswith("["):
        return authority[1 : authority.index("]")]
    return authority.partition(":")[0]


def lane_of_name(name: str) -> str:
    """Return the current lane name for the host of a lane; the name itself if it is not a host.

    Older versions named the lane of 192.0.2.1 also `::ffff:192.0.2.1`.
    """
    try:
        return parse_host(name)
    except UrlError:
        return name


def origin_of_url(canonical_url: str) -> str:
    """Return the origin of a canonical URL, without a default port (RFC 6454 §6)."""
    return canonical_url[: canonical_url.index("/", len("https://"))]
