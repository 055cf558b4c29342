"""Redaction of URLs and error texts, for every log line, result and command. Pure.

One rule: a value is secret by its name, in whatever form both are written. They are percent-decoded, several
times if need be, and looked for in queries, fragments, path parameters, URLs within values, JSON, header
lines and prose. The user information of a URL always goes.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, unquote_plus, urlsplit

import msgspec

from fetchfleet.jobs.contract.safe_text import shown

MAX_TEXT_CHARS = 300
MAX_READ_CHARS = 16_384
"""How much of a text is read."""

MAX_DECODINGS = 5
"""How often a value may be encoded; one that is encoded more often is hidden."""

_USERINFO = re.compile(r"((?:^|:)[/\\]{2,}|:[/\\])(?:[^/\\?#]*@(?:[/\\]+(?=[^/\\?#]*@))?)+")
_PLAIN = re.compile(r"https?://[A-Za-z0-9._-]+(?::[0-9]+)?/[A-Za-z0-9._~!$'()*+,:/-]*")
"""URLs without any of the above: nothing in them is ever redacted or escaped."""
_SPLIT = re.compile(r"([^/?#]*//[^/?#]*)?([^?#]*)(.*)", re.DOTALL)
_VALUE = re.compile(r"=[^&]*")
_PARAMETER = re.compile(r"[^&;#]+")
_AFTER_A_SEGMENT = re.compile(r"[?&;#]")
_CAMEL_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_WORD_ENDS = re.compile(r"[^a-z0-9]+")

# In texts and decoded values, where a plus may stand for a space. They are compiled at their first use: a
# plain fetch needs none.
_URL = r"(?i)[a-z][a-z0-9+.-]{0,31}://(?:[^\s/]*@)?[^\s'\"]*"
# Errors quote bytes of a response that cannot be read, which may be half of a cookie.
_QUOTED_BYTES = r"""(?<!\w)b(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_HEADER = (
    r"(?i)(?<![\w-])((?:proxy-)?authorization[ +]*:[ +]*|(?:set-)?cookie[ +]*:[ +]*(?=[^\r\n'\"]{0,999}=))"
    r"[^\r\n'\"]+"
)
_BEARER = r"(?i)(?<!\w)(bearer\s+)(?!(?:tokens?|auth\w*|scheme|realm|error)\b)[\w.~+/=*-]+"
_QUOTED_NAME = r"""["']([^"'\\]{1,200})\\*["'][\s+]*[:=][\s+]*"""
_QUOTED_VALUE = r"""(?s)(\\*")(?:[^"\\]|\\.)*"?|(\\*')(?:[^'\\]|\\.)*'?|[\[{].*|[^,}\]\s]+"""
_NAME = r"(?<![\w.%-])([A-Za-z][\w.\[\]-]{0,200})(?:[ +]*:[ +]*|=)"
_HELD = r"""(")[^"]*"?|(')[^']*'?|[^\s&;,'")\}\]]+"""
_WORD = r"[^\s'\"]+"

# A name is secret by its ending, however its words are joined (access_token, X-Amz-Signature) …
SECRET_ENDINGS = (
    *("token", "secret", "password", "passwd", "passphrase", "passcode", "signature", "credential"),
    *("credentials", "apikey", "accesskey", "authkey", "privatekey", "secretkey", "sessionkey", "signingkey"),
    *("assertion", "authcode", "authorization", "samlresponse", "sessid", "sessionid"),
)
# … or by its last word alone, because that word is the ending of too many other names.
SECRET_WORDS = frozenset(
    {
        *("auth", "bearer", "code", "csrf", "hmac", "jwt", "key", "otp", "pass", "pin", "pw", "pwd"),
        *("session", "sid", "sig", "ticket", "xsrf"),
    }
)
PROSE_WORDS = frozenset({"hmac", "jwt", "otp", "pwd", "sid", "sig"})
"""The words of these that also in prose name nothing else."""


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
    """Return the URL without user, password, fragment, the values of its query, and secrets of its path."""
    if _PLAIN.fullmatch(text):
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return "(unreadable URL)"
    if parts.scheme not in {"http", "https"} and "@" in parts.path + parts.query + parts.fragment:
        return "(unreadable URL)"  # a raw password may hold / or #, which end what looks like the host
    # Names stay, values go; a part without a name is a value.
    query = "&".join(
        _VALUE.sub("=***", f"{_decoded(name, 0)}{rest}") if rest else HIDDEN
        for name, rest in (_partition(part) for part in parts.query.split("&"))
    )
    query = f"?{query}" if parts.query else ""
    # Everywhere: the path may contain another URL, and so may the rest of an error's text.
    return shown(_USERINFO.sub(r"\1", f"{parts.scheme}://{parts.netloc}{_path(parts.path)}{query}"))


def final_url(text: str) -> str:
    """Return the URL of a result: without user, password, and the values that are secret by their names."""
    if _PLAIN.fullmatch(text):
        return text
    found = _SPLIT.fullmatch(_USERINFO.sub(r"\1", text))
    assert found is not None
    origin, path, rest = found.groups("")
    return origin + _path(path) + _parameters(_marked(rest), 0)


def is_secret(name: str) -> bool:
    """Return whether a parameter of that name holds a secret."""
    words = _words(name)
    return bool(words) and (words[-1] in SECRET_WORDS or "".join(words).endswith(SECRET_ENDINGS))


def text(value: object) -> str:
    """Return any text with its secrets redacted, controls escaped, cut to MAX_TEXT_CHARS."""
    return shown(_prose(str(value)[:MAX_READ_CHARS], url))[:MAX_TEXT_CHARS]


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
    return _prose(value, url) if isinstance(value, str) else value


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
    if not isinstance(value, str):
        return value
    return _prose(value, final_url) if (found := _json(value)) is None else found


def _is_secret_field(name: object) -> bool:
    return isinstance(name, str) and (is_secret(name) or name.lower().endswith(("cookie", "cookies")))


def _words(name: str) -> list[str]:
    """Return the words of a name that may be encoded, in lower case, without a number at the end."""
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


def _prose(value: str, shown_url: Callable[[str], str]) -> str:
    """Hide secrets in any text. shown_url: how the URLs in it are shown."""
    value = re.sub(_BEARER, r"\1***", _marked(re.sub(_QUOTED_BYTES, HIDDEN, value)))
    value = re.sub(_URL, lambda found: shown_url(found.group()), value)
    value = _without(value, _NAME, _is_secret_in_prose, _HELD)
    return re.sub(_WORD, _unless_secret_in_word, value) if "%" in value or "=" in value else value


def _unless_secret_in_word(word: re.Match[str]) -> str:
    """Hide secrets in a word of prose that is encoded, or looks like a query."""
    value = word[0]
    if "=" in value and _AFTER_A_SEGMENT.search(value):
        value = _parameters(value, 0)
    return _decoded(value, 0)


def _is_secret_in_prose(name: str) -> bool:
    words = _words(name)
    return bool(words) and (words[-1] in PROSE_WORDS or "".join(words).endswith(SECRET_ENDINGS))


def _marked(value: str) -> str:
    """Hide header lines with secrets, and the values of secret names in quotes, as in JSON."""
    return _without(re.sub(_HEADER, r"\1***", value), _QUOTED_NAME, _is_secret_field, _QUOTED_VALUE)


def _without(value: str, names: str, is_secret: Callable[[str], bool], held: str) -> str:
    """Hide what is held behind each secret name; quotes stay. names, held: patterns."""
    next_name, value_at = re.compile(names).search, re.compile(held).match
    pieces: list[str] = []
    done = 0
    while name := next_name(value, done):
        pieces.append(value[done : name.end()])
        done = name.end()
        if is_secret(name[1]) and (found := value_at(value, done)):
            mark = found[1] or found[2] or ""
            pieces.append(f"{mark}{HIDDEN}{mark}")
            done = found.end()
    return "".join(pieces) + value[done:]


def _json(value: str) -> str | None:
    """Hide secrets in a text that is a JSON object or array; None if it is none."""
    if value.lstrip()[:1] not in {"{", "["}:
        return None
    try:
        decoded = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    hidden = _meta(decoded)
    return value if hidden == decoded else msgspec.json.encode(hidden).decode()


def _path(path: str) -> str:
    return "/".join(map(_segment, path.split("/")))


def _segment(segment: str) -> str:
    """Hide secrets in a segment of a path: in its parameters, and in what is encoded in it."""
    found = _AFTER_A_SEGMENT.search(segment)
    end = found.start() if found else len(segment)
    name, equals, _ = segment[:end].partition("=")
    # Fewer names than in a query: /key=1/code=2/ names a partition of a data set.
    begin = f"{name}={HIDDEN}" if equals and _is_secret_in_prose(name) else _decoded(segment[:end], 0)
    return begin + _parameters(segment[end:], 0)


def _parameters(query: str, depth: int) -> str:
    return _PARAMETER.sub(lambda found: _parameter(found.group(), depth), query)


def _parameter(parameter: str, depth: int) -> str:
    """Hide secrets in `name=value`, in which the value may begin with another name."""
    parts = parameter.split("=")
    held = max((place for place, part in enumerate(parts) if part), default=0)
    for place, name in enumerate(parts[:held]):
        if is_secret(name):
            return f"{'='.join(parts[: place + 1])}={HIDDEN}"
    name, rest = _partition(parameter)
    return _decoded(name, depth) + (f"={_decoded(rest[1:], depth)}" if rest else "")


def _partition(parameter: str) -> tuple[str, str]:
    """Return the name, and the rest from the equals sign on; a rest without one if there is none."""
    name, equals, value = parameter.partition("=")
    return name, equals + value


def _decoded(value: str, depth: int) -> str:
    """Hide secrets in a value that may be encoded; one that has none stays as it is written."""
    decoded = unquote_plus(value) if "%" in value or "+" in value else value
    if decoded == value:
        return value
    if depth >= MAX_DECODINGS:
        return HIDDEN if "%" in value else value
    hidden = _json(decoded)
    if hidden is None:
        hidden = _parameters(_USERINFO.sub(r"\1", _marked(decoded)), depth + 1)
    return value if hidden == decoded else quote(hidden, safe="*")
