"""The prose checker: docstring openings, banned words and sentence length."""

from pathlib import Path

import pytest

from tools.prose import Fault, Rules, code_faults, faults, page_faults

RULES = Rules.load()
PATH = Path("x")


def in_code(source: str) -> list[str]:
    return [f"{fault.line}: {fault.text}" for fault in code_faults(source, PATH, RULES)]


def in_page(source: str) -> list[str]:
    return [f"{fault.line}: {fault.text}" for fault in page_faults(source, PATH, RULES)]


def test_code_and_pages_of_a_project_are_checked(tmp_path: Path) -> None:
    """Each fault has a path relative to the project. Other files are not read."""
    page, module = Path("docs", "a.md"), Path("tools", "b.py")
    for path, text in (
        (Path("README.md"), "We fetch.\n"),
        (page, "It is good.\nNobody knows.\n"),
        (module, '"""Whether it is."""\n'),
        (Path("other.md"), "We fetch.\n"),
    ):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)

    found = list(faults(tmp_path))

    assert [(module, 1), (Path("README.md"), 1), (page, 2)] == [(fault.path, fault.line) for fault in found]
    assert Fault(module, 1, "a docstring opens with 'Whether'") == found[0]


@pytest.mark.parametrize("opening", ["What", "Whether", "How", "Nothing"])
def test_a_docstring_that_opens_with_a_clause_is_a_fault(opening: str) -> None:
    """The docstring of a module, class, function, field or constant."""
    text = f'"""{opening} x."""'
    field = f"    a: int\n    {text}\n"
    source = f"{text}\nclass A:\n    {text}\n{field}    def b(self):\n        {text}\nC = 1\n{text}\n"
    expected = [f"{line}: a docstring opens with '{opening}'" for line in (1, 3, 5, 7, 9)]
    assert sorted(in_code(source)) == expected


def test_an_imperative_or_a_noun_phrase_is_accepted() -> None:
    """The first word counts as a whole: "Howling" is not "How"."""
    assert in_code('"""Howling wolves."""\ndef a():\n    """Return whether it is open."""\n') == []


def test_a_banned_word_is_found_in_docstrings_and_comments_but_not_in_code_or_quotes() -> None:
    """Names and quoted text are not prose."""
    docstring = '    """Return it,\n    as told; see `told` and "he".\n    """\n'
    source = f'he = "he"\n# the one he wants\ndef a():\n{docstring}'
    found = in_code(source)
    assert [text.split(":")[0] for text in found] == ["2", "5"]
    assert all("write" in text or "subject" in text for text in found)


def test_a_long_sentence_of_a_page_is_a_fault() -> None:
    """Code blocks and tables do not count. A list item is a paragraph of its own."""
    words = "word " * 24
    assert in_page(f"{words}end.\n\n```\n{words * 3}\n```\n\n| {words * 3} |\n\n- {words}\n- {words}\n") == []
    (found,) = in_page(f"# Title\n\n{words}\nand more.\n")
    assert found.startswith("3: a sentence of 26 words")


def test_punctuation_ends_a_sentence() -> None:
    """Semicolons and colons too."""
    part = "Word " * 20
    assert in_page(f"{part}end. {part}end: {part}end; {part}end.\n") == []
