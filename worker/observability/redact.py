"""Redaction of URLs and error texts, for every log line, result and command. Pure.

A value is secret by its name, however both are encoded. Names are searched in queries, fragments, path
parameters, URLs within values, JSON, header lines and prose; values are percent-decoded, several times if
necessary. The user information of a URL is always removed.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, unquote_plus, urlsplit

import msgspec

from fetchfleet.jobs.contract.safe_text import shown

MAX_TEXT_CHARS = 300
"""The maximum length of a text that is shown."""
MAX_READ_CHARS = 16_384
"""The rest of a longer text is ignored."""

MAX_DECODINGS = 5
"""The maximum number of percent-encoding layers to decode. A value with more is hidden."""

_USERINFO = re.compile(r"((?:^|:)[/\\]{2,}|:[/\\])(?:[^/\\?#]*@(?:[/\\]+(?=[^/\\?#]*@))?)+")
_PLAIN = re.compile(r"https?://[A-Za-z0-9._-]+(?::[0-9]+)?/[A-Za-z0-9._~!$'()*+,:/-]*")
"""URLs in which nothing is ever redacted or escaped: no user, query, fragment, encoding or parameters."""
_SPLIT = re.compile(r"([^/?#]*//[^/?#]*)?([^?#]*)(.*)", re.DOTALL)
_VALUE = re.compile(r"=[^&]*")
_PARAMETER = re.compile(r"[^&;#]+")
_SEGMENT_END = re.compile(r"[?&;#]")
_CAMEL_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_WORD_ENDS = re.compile(r"[^a-z0-9]+")

# For prose and decoded values, in which a plus may stand for a space. They are compiled at their first use,
# because most fetches need none of them.
_URL = r"(?i)[a-z][a-z0-9+.-]{0,31}://(?:[^\s/]*@)?[^\s'\"]*"
# Errors quote malformed bytes of a response, which may be part of a cookie.
_QUOTED_BYTES = r"""(?<!\w)b(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_HEADER = (
    r"(?i)(?<![\w-])((?:proxy-)?authorization[ +]*:[ +]*|(?:set-)?cookie[ +]*:[ +]*(?=[^\r\n'\"]{0,999}=))"
    r"[^\r\n'\"]+"
)
_BEARER = r"(?i)(?<!\w)(bearer\s+)(?!(?:tokens?|auth\w*|scheme|realm|error)\b)[\w.~+/=*-]+"
_QUOTED_NAME = r"""["']([^"'\\]{1,200})\\*["'][\s+]*[:=][\s+]*"""
_QUOTED_VALUE = r"""(?s)(\\*")(?:[^"\\]|\\.)*"?|(\\*')(?:[^'\\]|\\.)*'?|[\[{].*|[^,}\]\s]+"""
_UNMARKED_NAME = r"(?<![\w.%-])([A-Za-z][\w.\[\]-]{0,200})(?:[ +]*:[ +]*|=)"
_UNMARKED_VALUE = r"""(")[^"]*"?|(')[^']*'?|[^\s&;,'")\}\]]+"""
_WORD = r"[^\s'\"]+"

# A name is secret by its ending, however its words are joined (access_token, X-Amz-Signature), …
SECRET_ENDINGS = (
    *("token", "secret", "password", "passwd", "passphrase", "passcode", "signature", "credential"),
    *("credentials", "apikey", "accesskey", "authkey", "privatekey", "secretkey", "sessionkey", "signingkey"),
    *("assertion", "authcode", "authorization", "samlresponse", "sessid", "sessionid"),
)
# … or by its last word. These words are also endings of harmless words (monkey, zipcode).
SECRET_WORDS = frozenset(
    {
        *("auth", "bearer", "code", "csrf", "hmac", "jwt", "key", "otp", "pass", "pin", "pw", "pwd"),
        *("session", "sid", "sig", "ticket", "xsrf"),
    }
)
PROSE_WORDS = frozenset({"hmac", "jwt", "otp", "pwd", "sid", "sig"})
"""The words among SECRET_WORDS that mean a secret in prose too."""


HIDDEN = "***"
REDACTED = "redacted"

HIDDEN_FIELDS = frozenset({"body", "body_base64", "traceparent", "tracestate", "text"})
"""The fields of fetches and dead letters whose values are always hidden. text: input of a producer."""

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
"""The request fields whose values are shown. Any other field may hold a secret, whatever its name."""


def url(text: str) -> str:
    """Redact a URL for logs: hide user, password, fragment, query values, and secrets in the path."""
    if _PLAIN.fullmatch(text):
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return "(unreadable URL)"
    if parts.scheme not in {"http", "https"} and "@" in parts.path + parts.query + parts.fragment:
        return "(unreadable URL)"  # an unescaped password may contain / or #, which end the authority
    # A part without a name is a value.
    query = "&".join(
        _VALUE.sub("=***", f"{_hide_in_encoded(name, 0)}{rest}") if rest else HIDDEN
        for name, rest in (_partition(part) for part in parts.query.split("&"))
    )
    query = f"?{query}" if parts.query else ""
    # Applied to the whole URL, because its path may contain another URL.
    return shown(_USERINFO.sub(r"\1", f"{parts.scheme}://{parts.netloc}{_hide_in_path(parts.path)}{query}"))


def final_url(text: str) -> str:
    """Redact the URL of a result: hide user, password, and only the values that are secret by their names."""
    if _PLAIN.fullmatch(text):
        return text
    match = _SPLIT.fullmatch(_USERINFO.sub(r"\1", text))
    assert match is not None
    origin, path, rest = match.groups("")
    return origin + _hide_in_path(path) + _hide_in_query(_hide_quoted(rest), 0)


def is_secret(name: str) -> bool:
    """Return whether the value of a parameter with this name is secret."""
    words = _words(name)
    return bool(words) and (words[-1] in SECRET_WORDS or "".join(words).endswith(SECRET_ENDINGS))


def text(value: object) -> str:
    """Return the text of a value with secrets hidden and controls escaped, cut to MAX_TEXT_CHARS."""
    return shown(_hide_in_prose(str(value)[:MAX_READ_CHARS], url))[:MAX_TEXT_CHARS]


def record(value: Any) -> Any:
    """Return JSON data (results, dead letters) for the output of a command, with secrets hidden.

    Hidden are values of header fields, bodies, trace context, query values of URLs, and values in `meta` with
    a secret name. Names and structure stay. An object with a hidden value also has the key REDACTED, because
    it is not a fetch that could be submitted.
    """
    if isinstance(value, Mapping):
        shown = {name: _hide_field(name, item) for name, item in value.items()}
        return shown if shown == value else {**shown, REDACTED: True}
    if isinstance(value, list):
        return [record(item) for item in value]
    return _hide_in_prose(value, url) if isinstance(value, str) else value


def result(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result for the output of a command, as `record` does, but hide only secrets in its URLs.

    Consumers find the fetch by the rest of its URL.
    """
    urls = {name: value[name] for name in sorted(URL_FIELDS) if value.get(name)}
    shown = {**record({**value, **dict.fromkeys(urls)}), **{name: final_url(of) for name, of in urls.items()}}
    return shown if shown == value else {**shown, REDACTED: True}


def _hide_field(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name in HIDDEN_FIELDS:
        return HIDDEN
    if name in URL_FIELDS and isinstance(value, str):
        return url(value)
    if name == "headers" and isinstance(value, Mapping):
        return {of: item if of.lower() in SHOWN_HEADERS else HIDDEN for of, item in value.items()}
    if name != "meta":
        return record(value)
    try:
        return _hide_in_meta(value)
    except RecursionError:  # another program wrote it: a fetch has 100 levels at most
        return HIDDEN


def _hide_in_meta(value: Any) -> Any:
    """Hide values with a secret name. Producers find their results by the rest of `meta`."""
    if isinstance(value, Mapping):
        return {of: HIDDEN if _is_secret_field(of) else _hide_in_meta(item) for of, item in value.items()}
    if isinstance(value, list):
        return [_hide_in_meta(item) for item in value]
    if not isinstance(value, str):
        return value
    return _hide_in_prose(value, final_url) if (hidden := _hide_in_json(value)) is None else hidden


def _is_secret_field(name: object) -> bool:
    return isinstance(name, str) and (is_secret(name) or name.lower().endswith(("cookie", "cookies")))


def _words(name: str) -> list[str]:
    """Return the words of a name, percent-decoded and in lower case, without a number at the end."""
    for _ in range(MAX_DECODINGS):
        if "%" not in name and "+" not in name:
            break
        name = unquote_plus(name)
    if not name.isascii():
        name = unicodedata.normalize("NFKC", name)
    words = [word for word in _WORD_ENDS.split(_CAMEL_BOUNDARY.sub("-", name).lower()) if word]
    while words and words[-1].isdecimal():
        del words[-1]
    return [*words[:-1], words[-1].rstrip("0123456789")] if words else []


def _hide_in_prose(value: str, shown_url: Callable[[str], str]) -> str:
    """Hide secrets in a text. shown_url: redacts the URLs in it."""
    value = re.sub(_BEARER, r"\1***", _hide_quoted(re.sub(_QUOTED_BYTES, HIDDEN, value)))
    value = re.sub(_URL, lambda match: shown_url(match.group()), value)
    value = _hide_values(value, _UNMARKED_NAME, _is_secret_in_prose, _UNMARKED_VALUE)
    return re.sub(_WORD, _hide_in_word, value) if "%" in value or "=" in value else value


def _hide_in_word(word: re.Match[str]) -> str:
    """Hide secrets in a word of prose that is percent-encoded or looks like a query."""
    value = word[0]
    if "=" in value and _SEGMENT_END.search(value):
        value = _hide_in_query(value, 0)
    return _hide_in_encoded(value, 0)


def _is_secret_in_prose(name: str) -> bool:
    words = _words(name)
    return bool(words) and (words[-1] in PROSE_WORDS or "".join(words).endswith(SECRET_ENDINGS))


def _hide_quoted(value: str) -> str:
    """Hide values of secret header lines, and of secret names in quotes, as in JSON."""
    return _hide_values(re.sub(_HEADER, r"\1***", value), _QUOTED_NAME, _is_secret_field, _QUOTED_VALUE)


def _hide_values(value: str, names: str, is_secret: Callable[[str], bool], values: str) -> str:
    """Hide the value after each secret name; quotes stay. names, values: patterns of both."""
    next_name, value_at = re.compile(names).search, re.compile(values).match
    pieces: list[str] = []
    done = 0
    while name := next_name(value, done):
        pieces.append(value[done : name.end()])
        done = name.end()
        if is_secret(name[1]) and (match := value_at(value, done)):
            mark = match[1] or match[2] or ""
            pieces.append(f"{mark}{HIDDEN}{mark}")
            done = match.end()
    return "".join(pieces) + value[done:]


def _hide_in_json(value: str) -> str | None:
    """Hide secrets in a text that is a JSON object or array; return None for any other text.

    A text that is nested too deeply is hidden as a whole.
    """
    if value.lstrip()[:1] not in {"{", "["}:
        return None
    try:
        decoded = msgspec.json.decode(value)
        hidden = _hide_in_meta(decoded)
        return value if hidden == decoded else msgspec.json.encode(hidden).decode()
    except RecursionError:
        return HIDDEN
    except (msgspec.DecodeError, UnicodeError):
        return None


def _hide_in_path(path: str) -> str:
    return "/".join(map(_hide_in_segment, path.split("/")))


def _hide_in_segment(segment: str) -> str:
    """Hide secrets in a path segment, in its parameters and in encoded values."""
    match = _SEGMENT_END.search(segment)
    end = match.start() if match else len(segment)
    name, equals, _ = segment[:end].partition("=")
    # Fewer names are secret than in a query: /key=1/code=2/ is a partition of a data set.
    head = f"{name}={HIDDEN}" if equals and _is_secret_in_prose(name) else _hide_in_encoded(segment[:end], 0)
    return head + _hide_in_query(segment[end:], 0)


def _hide_in_query(query: str, depth: int) -> str:
    """Hide secrets in a query, with or without its question mark, which is not part of the first name."""
    mark = "?" if query.startswith("?") else ""
    parameters = query[len(mark) :]
    return mark + _PARAMETER.sub(lambda match: _hide_in_parameter(match.group(), depth), parameters)


def _hide_in_parameter(parameter: str, depth: int) -> str:
    """Hide secrets in `name=value`. The value may be another `name=value`."""
    parts = parameter.split("=")
    last = max((place for place, part in enumerate(parts) if part), default=0)
    for place, name in enumerate(parts[:last]):
        if is_secret(name):
            return f"{'='.join(parts[: place + 1])}={HIDDEN}"
    name, rest = _partition(parameter)
    return _hide_in_encoded(name, depth) + (f"={_hide_in_encoded(rest[1:], depth)}" if rest else "")


def _partition(parameter: str) -> tuple[str, str]:
    """Split at the first equals sign: return the name, and the rest with the sign."""
    name, equals, value = parameter.partition("=")
    return name, equals + value


def _hide_in_encoded(value: str, depth: int) -> str:
    """Hide secrets in a value that may be percent-encoded. A value without secrets is returned unchanged."""
    decoded = unquote_plus(value) if "%" in value or "+" in value else value
    if decoded == value:
        return value
    if depth >= MAX_DECODINGS:
        return HIDDEN if "%" in value else value
    hidden = _hide_in_json(decoded)
    if hidden is None:
        hidden = _hide_in_query(_USERINFO.sub(r"\1", _hide_quoted(decoded)), depth + 1)
    return value if hidden == decoded else quote(hidden, safe="*", errors="replace")
