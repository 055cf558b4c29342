"""Access to the console: the token, sessions in signed cookies, the limit of logins, allowed hosts. Pure.

Times are monotonic seconds. Random values are arguments.
"""

import hashlib
import hmac
import re
import stat
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

MIN_TOKEN_CHARS = 16
MAX_TOKEN_CHARS = 4096
SESSION_S = 12 * 3600.0
"""The lifetime of a session."""
SESSION_ID_CHARS = 32
MAX_FAILED_LOGINS = 5
"""The maximum number of failed logins of an address in FAILED_LOGINS_S."""
FAILED_LOGINS_S = 60.0
IPV6_NETWORK_BITS = 64
"""The prefix of the network in which one client may choose its IPv6 address (RFC 4291, section 2.5.4)."""
MAX_ADDRESSES = 10_000
"""The maximum number of addresses whose failed logins are counted. Beyond it the oldest is dropped."""
MAX_ENDED_SESSIONS = 10_000
UNKNOWN_ADDRESS = "-"

_TOKEN = re.compile(r"[!-~]+")
_SESSION = re.compile(r"([0-9a-f]{32})\.([0-9]{1,12})\.([0-9a-f]{64})")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")


class TokenError(ValueError):
    """The token or its file cannot be used. The message has the remedy."""


class Token:
    """The token of the console. Only its digest is kept."""

    def __init__(self, text: str) -> None:
        """Raise TokenError for a token that is short or has other characters than printable ASCII."""
        if not MIN_TOKEN_CHARS <= len(text) <= MAX_TOKEN_CHARS or not _TOKEN.fullmatch(text):
            raise TokenError(
                f"the token must have at least {MIN_TOKEN_CHARS} printable ASCII characters and no space;"
                " make one with: openssl rand -hex 32"
            )
        self._digest = _digest(text)

    def matches(self, text: str) -> bool:
        """Return whether the text is the token. The time does not depend on where they differ."""
        return hmac.compare_digest(self._digest, _digest(text))


def check_token_mode(mode: int) -> None:
    """Raise TokenError if other users may read or write a file of this mode (st_mode)."""
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise TokenError(
            f"other users can read or change it (mode {stat.S_IMODE(mode):03o}); run chmod 600 on it"
        )


class BrowserSession(NamedTuple):
    """A session of a browser."""

    id: str
    """32 hex digits; secret."""
    ends_s: int
    """The end of the session, monotonic."""

    @property
    def name(self) -> str:
        """The name in the log, from which the ID cannot be computed."""
        return f"session {_digest(self.id).hex()[:8]}"


class Sessions:
    """Signs and checks the cookies of sessions. A restart of the server ends all sessions."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._ended: dict[str, int] = {}
        """The sessions that ended by a logout, with the time until which their cookies would be valid."""

    def new(self, session_id: str, now_s: float) -> BrowserSession:
        """Return a new session. session_id: 32 random hex digits."""
        return BrowserSession(session_id, int(now_s + SESSION_S))

    def cookie(self, session: BrowserSession) -> str:
        """Return the value of the cookie of a session."""
        return f"{session.id}.{session.ends_s}.{self._mac('session', f'{session.id}.{session.ends_s}')}"

    def session_of(self, cookie: str, now_s: float) -> BrowserSession | None:
        """Return the session of a cookie; None if the cookie is forged, or the session has ended."""
        if (match := _SESSION.fullmatch(cookie)) is None:
            return None
        session = BrowserSession(match[1], int(match[2]))
        genuine = hmac.compare_digest(self.cookie(session), cookie)
        return session if genuine and now_s < session.ends_s and session.id not in self._ended else None

    def end(self, session: BrowserSession, now_s: float) -> None:
        """End a session before its time."""
        self._ended = {of: ends_s for of, ends_s in self._ended.items() if ends_s > now_s}
        if len(self._ended) >= MAX_ENDED_SESSIONS:
            del self._ended[next(iter(self._ended))]
        self._ended[session.id] = session.ends_s

    def form_token(self, session: BrowserSession) -> str:
        """Return the token that every form of a session must send, against cross-site request forgery."""
        return self._mac("form", session.id)

    def is_form_token(self, session: BrowserSession, text: str) -> bool:
        """Return whether the text is the form token of the session, in constant time."""
        return hmac.compare_digest(_digest(self.form_token(session)), _digest(text))

    def _mac(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()


class LoginLimit:
    """Limits the failed logins of each address; of each network for IPv6."""

    def __init__(self) -> None:
        self._failed: dict[str, list[float]] = {}

    def wait_s(self, address: str, now_s: float) -> float:
        """Return the time until the address may log in again; 0 if it may now."""
        failed = self._failed.get(_client_of(address), ())
        recent = [at_s for at_s in failed if now_s - at_s < FAILED_LOGINS_S]
        return recent[0] + FAILED_LOGINS_S - now_s if len(recent) >= MAX_FAILED_LOGINS else 0.0

    def failed(self, address: str, now_s: float) -> None:
        """Count a failed login."""
        client = _client_of(address)
        earlier = self._failed.pop(client, [])
        if len(self._failed) >= MAX_ADDRESSES:
            del self._failed[next(iter(self._failed))]
        self._failed[client] = [*earlier[1 - MAX_FAILED_LOGINS :], now_s]


def address_of(text: str) -> str:
    """Return an IP address without its zone; `-` for another text, which a proxy may have passed on."""
    try:
        return str(ip_address(text.partition("%")[0]))
    except ValueError:
        return UNKNOWN_ADDRESS


def is_loopback(host: str) -> bool:
    """Return whether a host, without its port, is a loopback address or `localhost`."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def hostname_of(header: str) -> str | None:
    """Return the host in a Host header without its port; None if the header is malformed."""
    match = _HOST.fullmatch(header)
    return None if match is None else match[1].lower()


def is_same_origin(origin: str, host: str) -> bool:
    """Return whether an Origin header names the host of the Host header.

    The scheme is not compared: a proxy may end TLS.
    """
    scheme, _, authority = origin.partition("://")
    return scheme in {"http", "https"} and authority.lower() == host.lower()


def _client_of(address: str) -> str:
    """Return the address or network that counts as one client."""
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    if not isinstance(ip, IPv6Address):
        return str(ip)
    return str(ip.ipv4_mapped or IPv6Network((ip, IPV6_NETWORK_BITS), strict=False))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()
