"""Where a 3xx response leads, and what of the request may go there (RFC 9110 §15.4). Pure.

Redirects are not left to httpx, which carries API keys, Proxy-Authorization and a shared cookie jar to other
origins, and dials each hop unvetted. The caller counts hops, and dials each through the same egress check as
the first.
"""

import msgspec

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.contract.field_checks import IDEMPOTENT_METHODS
from fetchfleet.jobs.contract.urls import UrlError, parse_url, same_origin
from fetchfleet.worker.fetch.rules.location import target_of

MAX_HOPS = 10

Headers = tuple[tuple[str, str], ...]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SEE_OTHER = 303
_POST_MAY_BECOME_GET = frozenset({301, 302})  # RFC 9110 §15.4.2 and §15.4.3, notes

# What another origin may see. Everything else may be a secret under any name.
CROSS_ORIGIN_HEADERS = frozenset(
    {"accept", "accept-encoding", "accept-language", "if-range", "range", "user-agent"}
)
# Describes a body, so goes when the body does (RFC 9110 §15.4 step 5, RFC 9530), as do Content-*.
_BODY_HEADERS = frozenset(
    {"digest", "expect", "last-modified", "repr-digest", "trailer", "transfer-encoding"}
)


_IN_THE_CLEAR = "from https to {}; what was private would be sent in the clear (https_to_http allows it)"


class RedirectRefused(msgspec.Struct, frozen=True):
    """A redirect that is not followed; the message says why and holds no secret."""

    message: str


def is_redirect(status: int) -> bool:
    """Return whether the status asks for another request: 301, 302, 303, 307 or 308.

    300, 304, 305 and 306 do not (RFC 9110 §15.4.1, §15.4.5 to §15.4.7).
    """
    return status in _REDIRECTS


def follow(
    request: Hop, status: int, location: str | None, *, repeat_safe: bool, https_to_http: bool = False
) -> Hop | RedirectRefused:
    """Return the request that a redirect of this one asks for, or why it is not made.

    `is_redirect(status)` must hold. `repeat_safe`: the caller allows a method that is not idempotent to be
    sent twice. `https_to_http`: the host's policy allows a redirect from https to http.
    """
    assert is_redirect(status), f"{status} is no redirect"
    if location is None:
        return RedirectRefused(f"{status} without a Location; nothing says where to go")
    url = parse_url(request.url)
    try:
        target = target_of(url, location)
    except UrlError as error:
        return RedirectRefused(f"{status} to a Location that is no URL: {error}")
    same = same_origin(url, target)
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
    # The messages name only origins, never a path or query.
    if url.scheme == "https" and target.scheme == "http" and not https_to_http:
        return RedirectRefused(f"{status} {_IN_THE_CLEAR.format(target.origin_with_port)}")
    if hop.has_body and not same:
        whose = f"would send the {hop.method} body to {target.origin_with_port}, which it was not meant for"
        return RedirectRefused(f"{status} {whose}")
    if hop.method not in IDEMPOTENT_METHODS and not repeat_safe:
        twice = f"would send the {hop.method} twice; allow repeats if that is safe"
        return RedirectRefused(f"{status} {twice}")
    if same:
        return hop
    kept = tuple(header for header in hop.headers if header[0].lower() in CROSS_ORIGIN_HEADERS)
    return msgspec.structs.replace(hop, headers=kept)
