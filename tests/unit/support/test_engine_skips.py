"""The marks for tests of one engine name tests that exist."""

from pathlib import Path

import pytest

from tests.support.engine_skips import HTTPX_ONLY

TESTS = Path(__file__).parents[2]


@pytest.mark.parametrize("file", HTTPX_ONLY)
def test_each_mark_names_a_test(file: str) -> None:
    """Otherwise a renamed test would run on the wrong engine."""
    text = (TESTS / file).read_text()

    assert [] == [beginning for beginning in HTTPX_ONLY[file] if f"def {beginning}" not in text]
