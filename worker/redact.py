"""The one place that decides what of a URL or an error a log may show."""

import re
from urllib.parse import urlsplit

MAX_TEXT_CHARS = 300
_URL = re.compile(r"(?:https?|rediss?|unix)://(?:[^\s/]*@)?[^\s'\"]*", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/?#]*@")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_VALUE = re.compile(r"=[^&]*")


def url(text: str) -> str:
    """The URL without user, password, fragment or the values of its query."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return "(unreadable URL)"
    if parts.scheme not in {"http", "https"} and "@" in parts.path + parts.query + parts.fragment:
        return "(unreadable URL)"  # a password pasted raw: a / or # in it ends what looks like the host
    query = "?" + _query(parts.query) if parts.query else ""
    # Everywhere: another URL may be in the path, or glued to this one in an error's text.
    return _visible(_USERINFO.sub("", f"{parts.scheme}://{parts.netloc}{parts.path}{query}"))


def text(value: object) -> str:
    """Any text, every URL in it redacted, controls escaped, cut to MAX_TEXT_CHARS."""
    redacted = _URL.sub(lambda found: url(found.group()), str(value))
    return _visible(redacted)[:MAX_TEXT_CHARS]


def _query(query: str) -> str:
    """Names stay, values go; a part without a name is a value."""
    parts = query.split("&")
    return "&".join(_VALUE.sub("=***", part) if "=" in part else "***" for part in parts)


def _visible(value: str) -> str:
    return _CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", value)
