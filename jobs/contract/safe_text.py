"""Text that is safe to show: no character of it controls a terminal, hides, reorders or breaks a line. Pure.

Everything that a command prints, logs or reports goes through here; names with such characters are refused.
What is stored stays as it came.
"""

import re

UNSAFE_CHARACTERS = (
    "\\x00-\\x1f\\x7f-\\x9f"  # C0, DEL, C1
    "\\u00ad\\u061c\\u180e\\u200b\\u200e\\u200f"  # soft hyphen, bidi marks, zero-width spaces
    "\\u2028-\\u202e\\u2060-\\u206f"  # line separators, bidi embeddings and isolates, invisible operators
    "\\ufeff\\ufff9-\\ufffb\\ufffe\\uffff"  # byte order mark, annotations, no characters
    "\\U00013430-\\U0001343f\\U0001bca0-\\U0001bca3\\U0001d173-\\U0001d17a"  # controls of some scripts
    "\\U000e0000-\\U000e007f"  # tags
    "\\ud800-\\udfff"  # half of a surrogate pair
)
"""As in a class of a regular expression. The zero-width joiners stay: scripts and emoji need them."""

UNSAFE = re.compile(f"[{UNSAFE_CHARACTERS}]")
_UNSAFE_IN_LINES = re.compile(f"(?!\n)[{UNSAFE_CHARACTERS}]")
_MAX_BMP = 0xFFFF


def shown(text: str) -> str:
    """Return the text in one line, with each unsafe character written as Python escapes it."""
    if text.isascii() and text.isprintable():  # many times faster than a search
        return text
    return UNSAFE.sub(_escape, text) if UNSAFE.search(text) else text


def shown_lines(text: str) -> str:
    """Return the text as `shown` does, with its line breaks."""
    return _UNSAFE_IN_LINES.sub(_escape, text) if UNSAFE.search(text) else text


def shown_json(encoded: str) -> str:
    """Return JSON with the same value and no unsafe character but its own line breaks."""
    return _UNSAFE_IN_LINES.sub(_json_escape, encoded) if UNSAFE.search(encoded) else encoded


def safe_json(encoded: bytes) -> bytes:
    """Return JSON, or lines of it, with the same values and no unsafe character.

    In JSON the controls below the space are escaped: of ASCII characters only DEL may be unsafe.
    """
    if encoded.isascii() and b"\x7f" not in encoded:
        return encoded
    return shown_json(encoded.decode()).encode()


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\u{code:04x}" if code <= _MAX_BMP else f"\\U{code:08x}"


def _json_escape(found: re.Match[str]) -> str:
    halves = found[0].encode("utf-16-be", errors="surrogatepass").hex()
    return "".join(f"\\u{halves[place : place + 4]}" for place in range(0, len(halves), 4))
