"""Text that is safe to show on a terminal, in a log and in JSON."""

import json
import re
import sys
import unicodedata

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.jobs.contract.safe_text import UNSAFE, safe_json, shown, shown_json, shown_lines

VISIBLE_FORMATS = {
    *(
        0x0600,
        0x0601,
        0x0602,
        0x0603,
        0x0604,
        0x0605,
        0x06DD,
        0x070F,
        0x0890,
        0x0891,
        0x08E2,
        0x110BD,
        0x110CD,
    ),
    *(0x200C, 0x200D),
}
"""Signs that are written before numbers and are seen, and the joiners, which scripts and emoji need."""

HOSTILE = st.text() | st.text("a\n\t\x1b\x7f\x9b\u202e\u2028\u2066\ufeff\ud800\U000e0041é", max_size=9)


def test_every_control_and_format_character_is_unsafe() -> None:
    """The Unicode data of this Python decides, except for formats that are visible or part of a script."""
    unsafe = {code for code in range(sys.maxunicode + 1) if UNSAFE.match(chr(code))}
    controls = {
        code
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    }

    assert controls - VISIBLE_FORMATS <= unsafe
    assert unsafe & VISIBLE_FORMATS == set()
    assert all(unicodedata.category(chr(code)) == "Cn" for code in unsafe - controls)


@given(HOSTILE)
def test_shown_text_is_one_line_with_readable_escapes(text: str) -> None:
    """Harmless text stays unchanged."""
    safe = shown(text)

    assert not UNSAFE.search(safe)
    assert shown(safe) == safe
    if "\\" not in text:
        read = re.sub(r"\\u(....)|\\U(........)", lambda found: chr(int(found[1] or found[2], 16)), safe)
        assert read == text
    assert [*map(shown, text.split("\n"))] == shown_lines(text).split("\n")


@given(st.recursive(HOSTILE, lambda inner: st.lists(inner) | st.dictionaries(HOSTILE, inner), max_leaves=5))
def test_shown_json_has_the_same_value(value: object) -> None:
    """It holds for every reader of JSON, on one line or indented."""
    compact = json.dumps(value, ensure_ascii=False)
    indented = json.dumps(value, ensure_ascii=False, indent=2)

    assert json.loads(shown_json(compact)) == json.loads(shown_json(indented)) == value
    assert not UNSAFE.search(shown_json(compact))
    assert not UNSAFE.search(shown_json(indented).replace("\n", ""))
    if not re.search("[\ud800-\udfff]", compact):
        assert msgspec.json.decode(shown_json(compact)) == value


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_safe_json_has_the_same_value(text: str) -> None:
    """ASCII and other text alike."""
    for value in (text, ascii(text), {"\x7f": text}):
        safe = safe_json(msgspec.json.encode(value))

        assert msgspec.json.decode(safe) == value
        assert not UNSAFE.search(safe.decode())
