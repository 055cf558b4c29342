"""A picture that is shown again and again, on a terminal and elsewhere."""

import io
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.cli.live.watch import CLEAR, HOME, REST_OF_LINE, REST_OF_SCREEN, Screen, in_place


@given(picture=st.text(), height=st.integers(2, 60))
def test_a_redrawn_picture_fits_the_terminal(picture: str, height: int) -> None:
    """It begins at the first place, and leaves nothing of the one before."""
    drawn = in_place(picture, height)

    assert drawn.startswith(HOME)
    assert drawn.endswith(REST_OF_SCREEN)
    assert drawn.count("\n") == drawn.count(f"{REST_OF_LINE}\n") == min(height - 1, len(picture.splitlines()))


def test_without_a_terminal_blocks_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty line is between them. There are no control sequences."""
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    screen = Screen()
    for picture in ("one\ntwo", "three"):
        screen.show(picture)

    assert "one\ntwo\n\nthree\n" == output.getvalue()


@pytest.mark.parametrize(("term", "expected"), [("xterm", (1, 2, 2)), ("dumb", (0, 0, 0))])
def test_a_terminal_is_redrawn_in_place_unless_it_is_dumb(
    monkeypatch: pytest.MonkeyPatch, term: str, expected: tuple[int, ...]
) -> None:
    """It is cleared once, at the start."""
    monkeypatch.setenv("TERM", term)
    ours, theirs = os.openpty()
    with open(theirs, "w", encoding="utf-8") as terminal, open(ours, "rb", buffering=0) as reader:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", terminal)
        screen = Screen()
        for picture in ("first", "second"):
            screen.show(picture)
        print("the end", file=terminal, flush=True)
        written = ""
        while "the end" not in written:  # a terminal may return its output in pieces
            written += reader.read(10_000).decode()

    assert expected == tuple(written.count(sequence) for sequence in (CLEAR, HOME, REST_OF_SCREEN))
    assert "second" in written
