"""The requirements for a response: whether it has a body to store, and why its body is refused. Pure.

A throttle is never a body: it says nothing about the resource. The gate learns the status of every response,
stored or refused (worker/fetch/rules/outcome.py).
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from fetchfleet.jobs.contract.checks.accept import ANY_TYPE, Accept, XRobots
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.result import Reason
from fetchfleet.worker.fetch.rules.outcome import Failed, is_throttle
from fetchfleet.worker.gate.robots_rules import token_of
from fetchfleet.worker.policy.model import LanePolicy

FORBIDDING_RULES = frozenset({"noai", "noimageai", "noimageindex", "noindex", "none"})
"""The rules of X-Robots-Tag that forbid the use of a body; `none` is noindex and nofollow."""

_RULES = FORBIDDING_RULES | {"max-image-preview", "max-snippet", "max-video-preview", "unavailable_after"}
"""The rules that a colon may follow: no user agents."""

_AGENT = re.compile(r"[!-9;-~]+")


class Requirements(NamedTuple):
    """The requirements of one fetch. Each is that of the fetch, or else of the policy."""

    accept: Accept
    retry_statuses: tuple[int, ...]
    x_robots: str


def requirements_of(fetch: Fetch, policy: LanePolicy) -> Requirements:
    """Return the requirements of a fetch for a response of the host with this policy; none for a webhook."""
    if fetch.sign:
        return Requirements(Accept(), (), XRobots.IGNORE)
    return Requirements(
        policy.accept if fetch.accept is None else fetch.accept,
        policy.retry_statuses if fetch.retry_statuses is None else fetch.retry_statuses,
        policy.x_robots if fetch.x_robots is None else fetch.x_robots,
    )


def has_body(required: Requirements, status: int, wait_s: float | None) -> bool:
    """Return whether the body of this status is stored or refused: of a 2xx, or of an accepted status.

    wait_s: the Retry-After, if the response has one.
    """
    if status in required.retry_statuses or is_throttle(status, wait_s):
        return False
    return 200 <= status < 300 or status in required.accept.statuses


def refusal_of(
    required: Requirements,
    status: int,
    content_type: str | None,
    x_robots_tags: Iterable[str],
    token: str,
    *,
    resumed: bool = False,
) -> Failed | None:
    """Return the outcome of a response that is refused by its head; None if the body may be stored.

    x_robots_tags: the lines of X-Robots-Tag. token: the product token of the worker. resumed: the response is
    the rest of a body. Its status is then that of a range, and it need not repeat the Content-Type (RFC 9110
    §15.3.7).
    """
    accept = required.accept
    if accept.statuses and status not in accept.statuses and not resumed:
        return _refused(Reason.STATUS_REFUSED, status, f"{status} is not one of accept.statuses")
    if required.x_robots == XRobots.OBEY:
        rule = forbidding_rule(x_robots_tags, token)
        if rule is not None:
            return _refused(Reason.X_ROBOTS_REFUSED, status, f"X-Robots-Tag: {rule}")
    known = content_type is not None or not resumed
    if accept.types and known and not matches(accept.types, content_type):
        return _refused(Reason.TYPE_REFUSED, status, f"Content-Type {content_type or 'missing'}")
    return None


def _refused(reason: Reason, status: int, note: str) -> Failed:
    return Failed(reason=reason, final=True, status=status, note=note)


def matches(media_ranges: Iterable[str], content_type: str | None) -> bool:
    """Return whether a Content-Type matches one of the media ranges, which are in lower case.

    A value that is missing or is not a type and a subtype matches `*/*` only.
    """
    essence = (content_type or "").partition(";")[0].strip().lower()
    kind, _, subtype = essence.partition("/")
    fitting = {ANY_TYPE, essence, f"{kind}/*"} if kind and subtype else {ANY_TYPE}
    return not fitting.isdisjoint(media_ranges)


def forbidding_rule(lines: Iterable[str], token: str) -> str | None:
    """Return the first rule of X-Robots-Tag that forbids this client to use the body; None without one.

    A rule may follow a user agent and a colon. It then applies to that client only, and so do the next rules
    of the line. Rules of all clients and of this one add up. Source: "Robots meta tag, data-nosnippet, and
    X-Robots-Tag specifications" of Google Search Central, and MDN on lines with several user agents.
    """
    for line in lines:
        applies = True
        for item in line.lower().split(","):
            before, colon, after = (part.strip() for part in item.partition(":"))
            rule = before
            if colon and before not in _RULES and _AGENT.fullmatch(before):
                applies, rule = token_of(before) in {token, "*"}, after
            if applies and rule in FORBIDDING_RULES:
                return rule
    return None
