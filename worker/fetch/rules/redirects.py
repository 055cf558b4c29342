"""Redirects: the request that follows a 3xx response (RFC 9110 §15.4), and its target. Pure.

httpx does not follow redirects for the worker. It would send API keys, Proxy-Authorization and cookies to
other origins, and would not move the fetch to the lane of another host.

A Location is parsed as browsers parse it, because hosts test their redirects with browsers. Source: the basic
URL parser of https://url.spec.whatwg.org, for http and https.
"""

import re
from urllib.parse import unquote, unquote_to_bytes

import msgspec

from fetchfleet.jobs.contract.checks.field_checks import IDEMPOTENT_METHODS
from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.contract.urls import DEFAULT_PORTS, FetchUrl, UrlError, parse_url, same_origin

Headers = tuple[tuple[str, str], ...]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SEE_OTHER = 303
_REPEATED_ELSEWHERE = frozenset({307, 308})
"""The host has not processed the request: the same request must be sent to the target."""
_POST_MAY_BECOME_GET = frozenset({301, 302})
"""RFC 9110 §15.4.2 and §15.4.3, notes."""

CROSS_ORIGIN_HEADERS = frozenset(
    {"accept", "accept-encoding", "accept-language", "if-range", "range", "user-agent"}
)
"""The headers that are sent to another origin. Any other header may be a secret."""
_CROSS_ORIGIN_BODY_HEADERS = frozenset(
    {
        *("content-digest", "content-encoding", "content-language", "content-type"),
        *("digest", "idempotency-key", "repr-digest"),
    }
)
"""Headers sent with an unchanged method or body: those that describe the body, and Idempotency-Key."""
_BODY_HEADERS = frozenset(
    {"digest", "expect", "last-modified", "repr-digest", "trailer", "transfer-encoding"}
)
"""Besides Content-*, the headers that are dropped with the body (RFC 9110 §15.4 step 5, RFC 9530)."""

_CONTROLS_AND_SPACE = "".join(map(chr, range(0x21)))
_NOT_IN_A_URL = str.maketrans("", "", "\t\n\r")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_SLASHES = "/\\"
_AUTHORITY_END = re.compile(r"[/\\?]")
_DOT_SEGMENT = re.compile(r"(?<![^/])(?:\.|%2[Ee]){1,2}(?![^/])")
_DELIMITERS = re.compile(r"[/\\?#@:\[\]]")
# `parse_url` escapes the other characters that are invalid in a URL.
_BYTE_TO_ESCAPE = re.compile(r"[^!-\[\]-~]")


class RedirectRefused(msgspec.Struct, frozen=True):
    """A redirect that is not followed."""

    message: str
    """The reason, without secrets."""


def is_redirect(status: int) -> bool:
    """Return whether the status is a redirect to follow: 301, 302, 303, 307 or 308.

    300, 304, 305 and 306 are not (RFC 9110 §15.4.1, §15.4.5 to §15.4.7).
    """
    return status in _REDIRECTS


class AllowedRedirects(msgspec.Struct, frozen=True, kw_only=True):
    """The risky redirects that the caller and the policy allow."""

    repeat: bool = False
    """The caller allows a method that is not idempotent to be sent twice."""
    https_to_http: bool = False
    """The policy of the redirecting host allows redirects from https to http."""
    bodies: bool = False
    """True if that policy allows a request with a body to be sent to another host (`redirect_bodies`)."""


def follow(
    request: Hop, status: int, location: str | None, allowed: AllowedRedirects
) -> Hop | RedirectRefused:
    """Return the request that follows a redirect of this one, or a refusal.

    status: one for which `is_redirect` is true.
    """
    assert is_redirect(status), f"{status} is not a redirect"
    if location is None:
        return RedirectRefused(f"{status} without a Location")
    url = parse_url(request.url)
    try:
        target = target_of(url, location)
    except UrlError as error:
        return RedirectRefused(f"{status} with an invalid Location: {error}")
    # The request keeps its method and body, or becomes a GET without a body (RFC 9110 §15.4).
    if request.method != "POST" if status in _POST_MAY_BECOME_GET else status != _SEE_OTHER:
        hop = msgspec.structs.replace(request, url=target.text)
    else:
        without_body = tuple(
            (name, value)
            for name, value in request.headers
            if not name.lower().startswith("content-") and name.lower() not in _BODY_HEADERS
        )
        hop = Hop("HEAD" if request.method == "HEAD" else "GET", target.text, without_body)
    refusal = _refusal(hop, status, url, target, allowed)
    if refusal is not None:
        return RedirectRefused(f"{status} {refusal}")
    if same_origin(url, target):
        return hop
    with_body = hop.has_body or hop.method not in IDEMPOTENT_METHODS
    names = CROSS_ORIGIN_HEADERS | _CROSS_ORIGIN_BODY_HEADERS if with_body else CROSS_ORIGIN_HEADERS
    headers = tuple(header for header in hop.headers if header[0].lower() in names)
    return msgspec.structs.replace(hop, headers=headers)


def _refusal(hop: Hop, status: int, url: FetchUrl, target: FetchUrl, allowed: AllowedRedirects) -> str | None:
    """Return why the redirect is refused, else None. The text names origins, never a path or query."""
    origin = target.origin_with_port
    if url.scheme == "https" and target.scheme == "http" and not allowed.https_to_http:
        return f"from https to {origin} would send the request unencrypted (https_to_http allows it)"
    upgrade = url.host == target.host and (url.scheme, target.scheme) == ("http", "https")
    may_receive_body = same_origin(url, target) or upgrade or allowed.bodies
    unsafe = hop.method not in IDEMPOTENT_METHODS and not allowed.repeat
    if unsafe and status not in _REPEATED_ELSEWHERE:
        return f"would send the {hop.method} twice (retry_unsafe allows it)"
    if (unsafe or hop.has_body) and not may_receive_body:
        sent = f"{hop.method} body" if hop.has_body else hop.method
        return f"would send the {sent} to another host, {origin} (redirect_bodies allows it)"
    return None


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
