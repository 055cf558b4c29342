"""The rules of a robots.txt (RFC 9309). Pure. The text, the clock and the product token are arguments.

protego reads the rules. It gets only the groups of this client: a file that names ten thousand robots costs
no more than one that names this one.
"""

import re
from enum import Enum

import msgspec

MAX_BYTES = 500 * 1024
"""How much of a robots.txt is read (RFC 9309 §2.5)."""

MAX_HOPS = 5
"""How many redirects are followed to it (RFC 9309 §2.3.1.2)."""

MAX_CRAWL_DELAY_S = 60.0
KEPT_S = 24 * 3600.0
"""How long a robots.txt is cached (RFC 9309 §2.4)."""

KEPT_MISSING_S = 3600.0
"""How long it is cached that there is none: one may be added any time."""

KEPT_UNAVAILABLE_S = 60.0

_AGENT = re.compile(r"user[- ]?agent[ \t]*[: \t][ \t]*([^#]*)", re.IGNORECASE)
_RULE = re.compile(
    r"(?:allow|disallow|dissallow|dissalow|disalow|diasllow|disallaw|crawl[- ]delay)[ \t]*[: \t]",
    re.IGNORECASE,
)
_TOKEN_END = re.compile(r"[/*\s]")


class RobotsStatus(Enum):
    """The meaning of the status of the response (RFC 9309 §2.3.1)."""

    RULES = "rules"
    """The body has the rules."""
    NONE = "none"
    """There is no robots.txt: everything is allowed."""
    WAIT = "wait"
    """It is unavailable: nothing is allowed yet."""


class RobotsRules:
    """The rules of one origin."""

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
    """The robots.txt of an origin as the fleet caches it: the groups for the robot named token."""

    token: str
    groups: str
    until_ms: int


class KnownRobots:
    """The rules that are known of a lane's origins."""

    def __init__(self) -> None:
        self._by_origin: dict[str, tuple[RobotsRules, int]] = {}

    def learn(self, origin: str, rules: RobotsRules, until_ms: int) -> None:
        """Apply the rules to the origin until then."""
        self._by_origin[origin] = rules, until_ms

    def rules(self, origin: str, now_ms: int) -> RobotsRules | None:
        """Return the origin's rules, None if they must be requested."""
        rules, until_ms = self._by_origin.get(origin, (None, 0))
        return rules if now_ms < until_ms else None

    def crawl_delay_s(self) -> float:
        """Return the longest crawl delay of the origins, since they are one host."""
        return max((rules.crawl_delay_s for rules, _ in self._by_origin.values()), default=0.0)


def status_of(status: int) -> RobotsStatus:
    """Return what the status means; a redirect that leads nowhere counts as no robots.txt."""
    if 200 <= status < 300:
        return RobotsStatus.RULES
    return RobotsStatus.WAIT if status == 429 or status >= 500 else RobotsStatus.NONE


def token_of(user_agent: str) -> str:
    """Return the product token by which a robots.txt names the client (RFC 9309 §2.2.1)."""
    return _TOKEN_END.split(user_agent.strip(), maxsplit=1)[0].lower() or "*"


def text_of(body: bytes) -> str:
    """Decode a body that was read up to MAX_BYTES, without a last line that was cut."""
    if len(body) >= MAX_BYTES:
        body = body[:MAX_BYTES]
        body = body[: max(body.rfind(b"\n"), body.rfind(b"\r")) + 1]
    return body.decode("utf-8-sig", errors="replace")


def groups_for(token: str, text: str) -> str:
    """Return the groups of a robots.txt that are for that robot or for all, and nothing else."""
    kept: list[str] = []
    applies, in_rules = False, True
    for line in map(str.strip, text.splitlines()):
        agent = _AGENT.match(line)
        if agent is not None:
            name = agent[1].strip()
            head = "*" if name == "*" else _TOKEN_END.split(name, maxsplit=1)[0].lower()
            applies = head in {token, "*"} or (applies and not in_rules)
            in_rules = False
            if head in {token, "*"}:
                kept.append(f"User-agent: {head}")
        elif _RULE.match(line):
            in_rules = True
            if applies:
                kept.append(line)
    return "\n".join(kept)


def unavailable(token: str, now_ms: int) -> CachedRobots:
    """Return an entry for an origin that cannot be requested: by the egress rules, or for its certificate."""
    return CachedRobots(token=token, groups="", until_ms=now_ms + int(KEPT_UNAVAILABLE_S * 1000))


def cached_of(token: str, status: int, body: bytes, now_ms: int) -> CachedRobots:
    """Return the entry to cache for a response that is not RobotsStatus.WAIT."""
    if status_of(status) is RobotsStatus.RULES:
        groups = groups_for(token, text_of(body))
        return CachedRobots(token=token, groups=groups, until_ms=now_ms + int(KEPT_S * 1000))
    return CachedRobots(token=token, groups="", until_ms=now_ms + int(KEPT_MISSING_S * 1000))


_decode = msgspec.json.Decoder(CachedRobots).decode


def to_json(kept: CachedRobots) -> bytes:
    """Encode the entry."""
    return msgspec.json.encode(kept)


def from_json(text: bytes, token: str, now_ms: int) -> CachedRobots | None:
    """Decode an entry; None if it cannot be read, is too old or is for another robot."""
    try:
        kept = _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return kept if kept.token == token and now_ms < kept.until_ms <= now_ms + KEPT_S * 1000 else None
