"""Redaction of URLs and error texts, for every log line, result and command. Pure."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_plus, urlsplit

from fetchfleet.jobs.contract.safe_text import shown

MAX_TEXT_CHARS = 300
_URL = re.compile(r"(?:https?|rediss?|unix)://(?:[^\s/]*@)?[^\s'\"]*", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/?#]*@")
# h11 quotes a header line that it cannot parse, which may be half of a cookie.
_QUOTED_BYTES = re.compile(r"""bytearray\(b(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\)""")
_PLAIN = re.compile(r"https?://[A-Za-z0-9._-]+(?::[0-9]+)?/[A-Za-z0-9._~!$&'()*+,;=:/%-]*")
"""URLs without any of the above: nothing in them is ever redacted or escaped."""
_VALUE = re.compile(r"=[^&]*")
_PARAMETER = re.compile(r"(?<=[?&;])([^?=&;#]*)=([^&;#]*)")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_WORD_ENDS = re.compile(r"[^a-z0-9]+")

# A name is secret by its ending, however its words are joined (access_token, X-Amz-Signature) …
SECRET_ENDINGS = (
    *("token", "secret", "password", "passwd", "passphrase", "signature", "credential", "credentials"),
    *("apikey", "accesskey", "privatekey", "authorization", "assertion", "sessionid", "samlresponse"),
)
# … or by its last word alone, because that word is the ending of too many other names.
SECRET_WORDS = frozenset(
    {
        *("auth", "bearer", "code", "hmac", "jwt", "key", "otp", "pass", "pin", "pwd", "session", "sid"),
        *("sig", "ticket"),
    }
)


HIDDEN = "***"
REDACTED = "redacted"

HIDDEN_FIELDS = frozenset({"body", "body_base64", "traceparent", "tracestate", "text"})
"""The fields of fetches and dead letters that a log line never has. text: the input as found."""

URL_FIELDS = frozenset({"url", "final_url"})

SHOWN_HEADERS = frozenset(
    {
        *("accept", "accept-encoding", "accept-language", "cache-control", "content-language"),
        *(
            "content-type",
            "if-match",
            "if-modified-since",
            "if-none-match",
            "if-range",
            "if-unmodified-since",
        ),
        *("prefer", "range", "te", "user-agent"),
    }
)
"""The header fields whose values are shown. Any other may hold a secret, whatever its name."""


def url(text: str) -> str:
    """Return the URL without user, password, fragment or the values of its query."""
    if _PLAIN.fullmatch(text):
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return "(unreadable URL)"
    if parts.scheme not in {"http", "https"} and "@" in parts.path + parts.query + parts.fragment:
        return "(unreadable URL)"  # a raw password may hold / or #, which end what looks like the host
    # Names stay, values go; a part without a name is a value.
    query = "&".join(_VALUE.sub("=***", part) if "=" in part else "***" for part in parts.query.split("&"))
    query = f"?{query}" if parts.query else ""
    # Everywhere: the path may contain another URL, and so may the rest of an error's text.
    return shown(_USERINFO.sub("", f"{parts.scheme}://{parts.netloc}{parts.path}{query}"))


def final_url(text: str) -> str:
    """Return the final URL for a result: without the values of parameters with secret names."""
    path, question, query = _USERINFO.sub("", text).partition("?")
    return path + _PARAMETER.sub(_unless_secret, question + query)


def is_secret(name: str) -> bool:
    """Whether a query parameter of that name holds a secret."""
    words = [word for word in _WORD_ENDS.split(_HUMP.sub("-", unquote_plus(name)).lower()) if word]
    return bool(words) and (words[-1] in SECRET_WORDS or "".join(words).endswith(SECRET_ENDINGS))


def text(value: object) -> str:
    """Return any text with URLs and bytes redacted, controls escaped, cut to MAX_TEXT_CHARS."""
    return shown(_in_text(str(value)))[:MAX_TEXT_CHARS]


def record(value: Any) -> Any:
    """Return what a command prints of JSON data (results, dead letters), with its secrets hidden.

    Hides the values of header fields, bodies, trace context and the query values of URLs, and in `meta` what
    has the name of a secret. Names stay, and so does the shape. An object in which something is hidden has
    REDACTED: it is no fetch any more that could be submitted.
    """
    if isinstance(value, Mapping):
        shown = {name: _field(name, held) for name, held in value.items()}
        return shown if shown == value else {**shown, REDACTED: True}
    if isinstance(value, list):
        return [record(held) for held in value]
    return _in_text(value) if isinstance(value, str) else value


def result(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a command prints of a result: as `record` does, but only secrets go from its URLs.

    The rest of a URL is how a consumer finds the fetch again.
    """
    urls = {name: value[name] for name in sorted(URL_FIELDS) if value.get(name)}
    shown = {**record({**value, **dict.fromkeys(urls)}), **{name: final_url(of) for name, of in urls.items()}}
    return shown if shown == value else {**shown, REDACTED: True}


def _field(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name in HIDDEN_FIELDS:
        return HIDDEN
    if name in URL_FIELDS and isinstance(value, str):
        return url(value)
    if name == "headers" and isinstance(value, Mapping):
        return {of: held if of.lower() in SHOWN_HEADERS else HIDDEN for of, held in value.items()}
    return _meta(value) if name == "meta" else record(value)


def _meta(value: Any) -> Any:
    """Hide what has the name of a secret: the rest is how a producer finds its results again."""
    if isinstance(value, Mapping):
        return {of: HIDDEN if _is_secret_field(of) else _meta(held) for of, held in value.items()}
    if isinstance(value, list):
        return [_meta(held) for held in value]
    return _URL.sub(lambda found: final_url(found.group()), value) if isinstance(value, str) else value


def _is_secret_field(name: str) -> bool:
    return is_secret(name) or name.lower().endswith(("cookie", "cookies"))


def _in_text(value: str) -> str:
    return _URL.sub(lambda found: url(found.group()), _QUOTED_BYTES.sub(HIDDEN, value))


def _unless_secret(parameter: re.Match[str]) -> str:
    name, value = parameter.groups()
    return f"{name}=***" if value and is_secret(name) else parameter.group()
