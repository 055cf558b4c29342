"""The target of a 3xx response, and the request that may be sent there (RFC 9110 §15.4). Pure.

Redirects are not left to httpx, which carries API keys, Proxy-Authorization and a shared cookie jar to other
origins, and dials each hop unvetted. The caller counts hops, and dials each through the same egress check as
the first.
"""

import msgspec

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.contract.field_checks import IDEMPOTENT_METHODS
from fetchfleet.jobs.contract.urls import FetchUrl, UrlError, parse_url, same_origin
from fetchfleet.worker.fetch.rules.location import target_of

Headers = tuple[tuple[str, str], ...]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SEE_OTHER = 303
_NOTHING_DONE = frozenset({307, 308})  # the host asks for the same request elsewhere, so it has done nothing
_POST_MAY_BECOME_GET = frozenset({301, 302})  # RFC 9110 §15.4.2 and §15.4.3, notes

# What another origin may see. Everything else may be a secret under any name.
CROSS_ORIGIN_HEADERS = frozenset(
    {"accept", "accept-encoding", "accept-language", "if-range", "range", "user-agent"}
)
# What another origin sees as well if the request goes there whole: what its body is, and the key that marks
# its repeats, which are repeated because of it.
_WITH_THE_BODY = frozenset(
    {
        *("content-digest", "content-encoding", "content-language", "content-type"),
        *("digest", "idempotency-key", "repr-digest"),
    }
)
# Describes a body, so goes when the body does (RFC 9110 §15.4 step 5, RFC 9530), as do Content-*.
_BODY_HEADERS = frozenset(
    {"digest", "expect", "last-modified", "repr-digest", "trailer", "transfer-encoding"}
)


class RedirectRefused(msgspec.Struct, frozen=True):
    """A redirect that is not followed; the message says why and holds no secret."""

    message: str


def is_redirect(status: int) -> bool:
    """Return whether the status asks for another request: 301, 302, 303, 307 or 308.

    300, 304, 305 and 306 do not (RFC 9110 §15.4.1, §15.4.5 to §15.4.7).
    """
    return status in _REDIRECTS


class Allowed(msgspec.Struct, frozen=True, kw_only=True):
    """Redirects that are followed only on request, because they may do harm."""

    repeat: bool = False
    """The caller allows a method that is not idempotent to be sent twice."""
    https_to_http: bool = False
    """The policy of the redirecting host allows redirects from https to http."""
    bodies: bool = False
    """That policy allows a request with a body to be sent to another host (`redirect_bodies`)."""


def follow(request: Hop, status: int, location: str | None, allowed: Allowed) -> Hop | RedirectRefused:
    """Return the request that a redirect of this one asks for, or why it is not made.

    `is_redirect(status)` must hold.
    """
    assert is_redirect(status), f"{status} is no redirect"
    if location is None:
        return RedirectRefused(f"{status} without a Location; nothing says where to go")
    url = parse_url(request.url)
    try:
        target = target_of(url, location)
    except UrlError as error:
        return RedirectRefused(f"{status} to a Location that is no URL: {error}")
    # By the status alone the request is kept whole, or becomes a GET without a body (RFC 9110 §15.4).
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
    whole = hop.has_body or hop.method not in IDEMPOTENT_METHODS
    seen = CROSS_ORIGIN_HEADERS | _WITH_THE_BODY if whole else CROSS_ORIGIN_HEADERS
    kept = tuple(header for header in hop.headers if header[0].lower() in seen)
    return msgspec.structs.replace(hop, headers=kept)


def _refusal(hop: Hop, status: int, url: FetchUrl, target: FetchUrl, allowed: Allowed) -> str | None:
    """Return why the request is not made, None if it is; the text names origins, never a path or query."""
    where = target.origin_with_port
    if url.scheme == "https" and target.scheme == "http" and not allowed.https_to_http:
        return f"from https to {where}; what was private would be sent in the clear (https_to_http allows it)"
    upgrade = url.host == target.host and (url.scheme, target.scheme) == ("http", "https")
    meant_for_it = same_origin(url, target) or upgrade or allowed.bodies
    unsafe = hop.method not in IDEMPOTENT_METHODS and not allowed.repeat
    if unsafe and status not in _NOTHING_DONE:
        return f"would send the {hop.method} twice; allow repeats if that is safe"
    if (unsafe or hop.has_body) and not meant_for_it:
        what = f"{hop.method} body" if hop.has_body else hop.method
        return f"would send the {what} to {where}, which it was not meant for (redirect_bodies allows it)"
    return None
