"""The rules of a robots.txt (RFC 9309). Pure. The text, the clock and the product token are arguments.

protego parses the rules. It receives only the groups for this client, so a file with ten thousand robots
costs little more than one without them.
"""

import re
from enum import Enum

import msgspec

MAX_BYTES = 500 * 1024
"""The rest of a larger robots.txt is ignored (RFC 9309 §2.5)."""

MAX_HOPS = 5
"""The number of redirects that are followed to a robots.txt (RFC 9309 §2.3.1.2)."""

MAX_CRAWL_DELAY_S = 60.0
"""Longer crawl delays are cut to this one."""

CACHE_S = 24 * 3600.0
"""The time for which a robots.txt is cached (RFC 9309 §2.4)."""

CACHE_MISSING_S = 3600.0
"""The time for which a missing robots.txt is cached: shorter, because one may be added at any time."""

CACHE_UNAVAILABLE_S = 60.0
"""The time for which a request refused by the egress rule or the certificate is cached."""

_AGENT = re.compile(r"user[- ]?agent[ \t]*[: \t][ \t]*([^#]*)", re.IGNORECASE)
_RULE = re.compile(
    r"(?:allow|disallow|dissallow|dissalow|disalow|diasllow|disallaw|crawl[- ]delay)[ \t]*[: \t]",
    re.IGNORECASE,
)
_TOKEN_END = re.compile(r"[/*\s]")


class RobotsStatus(Enum):
    """The meaning of the status of a response for robots.txt (RFC 9309 §2.3.1)."""

    RULES = "rules"
    """The body has the rules."""
    NONE = "none"
    """The host has no robots.txt: everything is allowed."""
    WAIT = "wait"
    """robots.txt is unavailable: nothing is allowed until a later request for it succeeds."""


class RobotsRules:
    """The rules of one origin for the robot `token`."""

    def __init__(self, groups: str, token: str) -> None:
        self._protego, delay_s = None, None
        if groups:
            from protego import Protego  # noqa: PLC0415 few policies obey robots.txt

            self._protego = Protego.parse(groups)
            delay_s = self._protego.crawl_delay(token)
        self._token = token
        self.crawl_delay_s = min(delay_s or 0.0, MAX_CRAWL_DELAY_S)

    def allows(self, url: str) -> bool:
        """Return whether the URL, in canonical form, may be fetched."""
        return self._protego is None or self._protego.can_fetch(url, self._token)


ALLOW_ALL = RobotsRules("", "*")


class CachedRobots(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the robots.txt cache in Redis."""

    token: str
    """The product token of the robot."""
    groups: str
    """The groups for this robot, as text; empty if everything is allowed."""
    until_ms: int
    """The time when the entry expires, in Unix ms."""


class KnownRobots:
    """The rules of the origins of a lane, as far as they are known."""

    def __init__(self) -> None:
        self._by_origin: dict[str, tuple[RobotsRules, int]] = {}

    def learn(self, origin: str, rules: RobotsRules, until_ms: int) -> None:
        """Store the rules of an origin until until_ms (Unix)."""
        self._by_origin[origin] = rules, until_ms

    def rules(self, origin: str, now_ms: int) -> RobotsRules | None:
        """Return the rules of the origin; None if they are unknown or have expired."""
        rules, until_ms = self._by_origin.get(origin, (None, 0))
        return rules if now_ms < until_ms else None

    def crawl_delay_s(self) -> float:
        """Return the longest crawl delay of the origins, which share one host; 0 for none."""
        return max((rules.crawl_delay_s for rules, _ in self._by_origin.values()), default=0.0)


def status_of(status: int) -> RobotsStatus:
    """Return the meaning of a status. A redirect that was not followed counts as no robots.txt."""
    if 200 <= status < 300:
        return RobotsStatus.RULES
    return RobotsStatus.WAIT if status == 429 or status >= 500 else RobotsStatus.NONE


def token_of(user_agent: str) -> str:
    """Return the product token of a User-Agent, by which robots.txt names the client (RFC 9309 §2.2.1)."""
    return _TOKEN_END.split(user_agent.strip(), maxsplit=1)[0].lower() or "*"


def text_of(body: bytes) -> str:
    """Decode the first MAX_BYTES of a body, without a last line that is cut."""
    if len(body) >= MAX_BYTES:
        body = body[:MAX_BYTES]
        body = body[: max(body.rfind(b"\n"), body.rfind(b"\r")) + 1]
    return body.decode("utf-8-sig", errors="replace")


def groups_for(token: str, text: str) -> str:
    """Return only the groups of a robots.txt that apply to the robot `token` or to all robots."""
    lines: list[str] = []
    applies, in_rules = False, True
    for line in map(str.strip, text.splitlines()):
        agent = _AGENT.match(line)
        if agent is not None:
            name = agent[1].strip()
            group_token = "*" if name == "*" else _TOKEN_END.split(name, maxsplit=1)[0].lower()
            applies = group_token in {token, "*"} or (applies and not in_rules)
            in_rules = False
            if group_token in {token, "*"}:
                lines.append(f"User-agent: {group_token}")
        elif _RULE.match(line):
            in_rules = True
            if applies:
                lines.append(line)
    return "\n".join(lines)


def unavailable(token: str, now_ms: int) -> CachedRobots:
    """Return the entry for an origin that the egress rule or its certificate keeps from being requested."""
    return CachedRobots(token=token, groups="", until_ms=now_ms + int(CACHE_UNAVAILABLE_S * 1000))


def cached_of(token: str, status: int, body: bytes, now_ms: int) -> CachedRobots:
    """Return the entry to cache for a response whose status is not RobotsStatus.WAIT."""
    if status_of(status) is RobotsStatus.RULES:
        groups = groups_for(token, text_of(body))
        return CachedRobots(token=token, groups=groups, until_ms=now_ms + int(CACHE_S * 1000))
    return CachedRobots(token=token, groups="", until_ms=now_ms + int(CACHE_MISSING_S * 1000))


_decode = msgspec.json.Decoder(CachedRobots).decode


def to_json(entry: CachedRobots) -> bytes:
    """Encode a cache entry."""
    return msgspec.json.encode(entry)


def from_json(text: bytes, token: str, now_ms: int) -> CachedRobots | None:
    """Decode a cache entry; None if it is malformed, has expired or is for another robot."""
    try:
        entry = _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return entry if entry.token == token and now_ms < entry.until_ms <= now_ms + CACHE_S * 1000 else None
