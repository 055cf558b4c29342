"""Escaping of characters that control a terminal, or hide, reorder or break text. Pure.

Commands, logs and reports escape such characters; file names must not have them. Stored data is unchanged.
"""

import re

UNSAFE_CHARACTERS = (
    "\\x00-\\x1f\\x7f-\\x9f"  # C0, DEL, C1
    "\\u00ad\\u061c\\u180e\\u200b\\u200e\\u200f"  # soft hyphen, bidi marks, zero-width spaces
    "\\u2028-\\u202e\\u2060-\\u206f"  # line separators, bidi embeddings and isolates, invisible operators
    "\\ufeff\\ufff9-\\ufffb\\ufffe\\uffff"  # byte order mark, annotations, noncharacters
    "\\U00013430-\\U0001343f\\U0001bca0-\\U0001bca3\\U0001d173-\\U0001d17a"  # controls of some scripts
    "\\U000e0000-\\U000e007f"  # tags
    "\\ud800-\\udfff"  # half of a surrogate pair
)
"""Content of a regular expression class. Scripts and emoji need the zero-width joiners, so they are safe."""

UNSAFE = re.compile(f"[{UNSAFE_CHARACTERS}]")
_UNSAFE_IN_LINES = re.compile(f"(?!\n)[{UNSAFE_CHARACTERS}]")
_MAX_BMP = 0xFFFF


def shown(text: str) -> str:
    """Return the text with unsafe characters, line breaks included, as Unicode escapes."""
    if text.isascii() and text.isprintable():  # much faster than the search
        return text
    return UNSAFE.sub(_escape, text) if UNSAFE.search(text) else text


def shown_lines(text: str) -> str:
    """Return the text with unsafe characters as Unicode escapes, but keep line breaks."""
    return _UNSAFE_IN_LINES.sub(_escape, text) if UNSAFE.search(text) else text


def shown_json(encoded: str) -> str:
    """Return JSON of the same value with unsafe characters as Unicode escapes; keep line breaks."""
    return _UNSAFE_IN_LINES.sub(_json_escape, encoded) if UNSAFE.search(encoded) else encoded


def safe_json(encoded: bytes) -> bytes:
    """Return JSON or JSON Lines of the same values with unsafe characters as Unicode escapes.

    JSON escapes control characters below the space, so DEL is the only unsafe ASCII character.
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
