"""The one place that decides what of a URL or an error a log, a result or a command may show."""

import re
from urllib.parse import unquote_plus, urlsplit

MAX_TEXT_CHARS = 300
_URL = re.compile(r"(?:https?|rediss?|unix)://(?:[^\s/]*@)?[^\s'\"]*", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/?#]*@")
# h11 quotes the line of a head that it cannot read, and that may be half of a cookie.
_QUOTED_BYTES = re.compile(r"""bytearray\(b(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\)""")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_PLAIN = re.compile(r"https?://[A-Za-z0-9._-]+(?::[0-9]+)?/[A-Za-z0-9._~!$&'()*+,;=:/%-]*")
"""What holds none of all that: nothing of it is ever left out or written otherwise."""
_VALUE = re.compile(r"=[^&]*")
_PARAMETER = re.compile(r"(?<=[?&;])([^?=&;#]*)=([^&;#]*)")
_WORD_ENDS = re.compile(r"[^a-z0-9]+")

# A name is secret by what it ends with, however its words are joined (access_token, X-Amz-Signature) …
SECRET_ENDINGS = (
    *("token", "secret", "password", "passwd", "passphrase", "signature", "credential", "credentials"),
    *("apikey", "accesskey", "privatekey", "authorization", "assertion", "sessionid", "samlresponse"),
)
# … or by its last word alone, which would be in too many others.
SECRET_WORDS = frozenset(
    {"auth", "code", "hmac", "jwt", "key", "otp", "pass", "pin", "pwd", "session", "sid", "sig", "ticket"}
)


def url(text: str) -> str:
    """The URL without user, password, fragment or the values of its query."""
    if _PLAIN.fullmatch(text):
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return "(unreadable URL)"
    if parts.scheme not in {"http", "https"} and "@" in parts.path + parts.query + parts.fragment:
        return "(unreadable URL)"  # a password pasted raw: a / or # in it ends what looks like the host
    query = "?" + _query(parts.query) if parts.query else ""
    # Everywhere: another URL may be in the path, or glued to this one in an error's text.
    return _visible(_USERINFO.sub("", f"{parts.scheme}://{parts.netloc}{parts.path}{query}"))


def final_url(text: str) -> str:
    """Where redirects led, as a result says it: a value goes if its parameter's name is that of a secret."""
    path, question, query = _USERINFO.sub("", text).partition("?")
    return path + _PARAMETER.sub(_unless_secret, question + query)


def is_secret(name: str) -> bool:
    """Whether a parameter of that name, as it stands in a query, holds what opens a door."""
    words = [word for word in _WORD_ENDS.split(unquote_plus(name).lower()) if word]
    return bool(words) and (words[-1] in SECRET_WORDS or "".join(words).endswith(SECRET_ENDINGS))


def text(value: object) -> str:
    """Any text, URLs and bytes in it redacted, controls escaped, cut to MAX_TEXT_CHARS."""
    redacted = _URL.sub(lambda found: url(found.group()), _QUOTED_BYTES.sub("***", str(value)))
    return _visible(redacted)[:MAX_TEXT_CHARS]


def _unless_secret(parameter: re.Match[str]) -> str:
    name, value = parameter.groups()
    return f"{name}=***" if value and is_secret(name) else parameter.group()


def _query(query: str) -> str:
    """Names stay, values go; a part without a name is a value."""
    parts = query.split("&")
    return "&".join(_VALUE.sub("=***", part) if "=" in part else "***" for part in parts)


def _visible(value: str) -> str:
    return _CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", value)
