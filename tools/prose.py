"""Check the prose of the project: docstring openings, banned words, and sentence length in pages.

The rules, with their reasons, are in tools/prose.toml. `python -m tools.prose` prints each violation with its
file and line, and exits with 1 if there is one.
"""

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RULES = ROOT / "tools" / "prose.toml"
CODE = ("jobs", "worker", "fetchfleet", "tools", "tests", "examples")
PAGES = ("README.md", "docs", "examples", "ops")

_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_INLINE_CODE = re.compile(r"``[^`]*``|`[^`]*`")
_QUOTED = re.compile(r'"[^"\n]*"')
_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+(?=[A-Z`*\[])")
_NOT_PROSE = re.compile(r"^\s*(\||#|>|<|\[[^]]*\]\(#|Contents:)")
_LIST_ITEM = re.compile(r"^\s*([-*]|\d+\.)\s+")


class Fault(NamedTuple):
    """A violation of a rule."""

    path: Path
    line: int
    text: str


class Rules(NamedTuple):
    """The rules of tools/prose.toml, compiled."""

    opening: re.Pattern[str]
    words: list[tuple[re.Pattern[str], str]]
    sentence_words: int

    @classmethod
    def load(cls, path: Path = RULES) -> "Rules":
        """Read and compile the rules."""
        table: dict[str, Any] = tomllib.loads(path.read_text())
        words = [
            (re.compile(rf"\b(?:{row['pattern']})\b", re.IGNORECASE), row["reason"]) for row in table["words"]
        ]
        return cls(re.compile(rf"(?:{'|'.join(table['openings'])})\b"), words, table["sentence_words"])


def _docstrings(source: str) -> Iterator[ast.Constant]:
    """Yield the docstrings of a module, its classes, functions, fields and constants."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for previous, statement in pairwise((None, *node.body)):
                match statement:
                    case ast.Expr(value=ast.Constant(value=str()) as text) if isinstance(
                        previous, ast.Assign | ast.AnnAssign | None
                    ):
                        yield text


def code_faults(source: str, path: Path, rules: Rules) -> Iterator[Fault]:
    """Yield the faults of the docstrings and comments of a module."""
    for text in _docstrings(source):
        if found := rules.opening.match(str(text.value).lstrip()):
            yield Fault(path, text.lineno, f"a docstring opens with {found[0]!r}")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_docstring = token.type == tokenize.STRING and token.string.startswith('"""')
        if is_docstring or token.type == tokenize.COMMENT:
            for number, line in enumerate(token.string.splitlines()):
                yield from _word_faults(line, path, token.start[0] + number, rules)


def page_faults(source: str, path: Path, rules: Rules) -> Iterator[Fault]:
    """Yield the faults of a Markdown page. Code is not checked, and tables only for banned words."""
    text = _FENCE.sub(lambda found: "\n" * found[0].count("\n"), source)
    for number, line in enumerate(text.splitlines(), 1):
        yield from _word_faults(line, path, number, rules)
    paragraph: list[str] = []
    start = 1
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.strip() and not _NOT_PROSE.match(line) and not (paragraph and _LIST_ITEM.match(line)):
            start = start if paragraph else number
            paragraph.append(_LIST_ITEM.sub("", line).strip())
            continue
        for sentence in _SENTENCE_END.split(" ".join(paragraph)):
            if (count := len(_INLINE_CODE.sub("code", sentence).split())) > rules.sentence_words:
                yield Fault(path, start, f"a sentence of {count} words: {sentence[:400]}")
        paragraph = []
        if _LIST_ITEM.match(line):
            start, paragraph = number, [_LIST_ITEM.sub("", line).strip()]


def _word_faults(line: str, path: Path, number: int, rules: Rules) -> Iterator[Fault]:
    plain = _QUOTED.sub("", _INLINE_CODE.sub("", line.replace('"""', "")))
    for pattern, reason in rules.words:
        for found in pattern.finditer(plain):
            yield Fault(path, number, f"{found[0]!r}: {reason}")


def faults(root: Path = ROOT) -> Iterator[Fault]:
    """Yield every fault of the project."""
    rules = Rules.load()
    for folder in CODE:
        for path in sorted((root / folder).rglob("*.py")):
            yield from code_faults(path.read_text(), path.relative_to(root), rules)
    for name in PAGES:
        top = root / name
        for path in [top] if top.is_file() else sorted(top.rglob("*.md")):
            yield from page_faults(path.read_text(), path.relative_to(root), rules)


def main() -> int:
    """Print every fault of the project; return the exit code."""
    found = list(faults())
    for fault in found:
        sys.stderr.write(f"{fault.path}:{fault.line}: {fault.text}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
