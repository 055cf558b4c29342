"""The pieces of a body: every byte once, whatever the order in which they end or break off."""

import itertools
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.body.pieces import MOST_TIMES, Piece, Pieces

LEAST = 100


def pieces_of(first: int, end: int, total: int, segments: int = 4) -> Pieces:
    """Return the pieces of a body whose first response has the bytes from `first` to `end`."""
    return Pieces(Piece(first, end), total, segments, LEAST)


steps = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 400), st.booleans()), max_size=40)
"""The next piece to write by its number, the bytes that it gets, and whether it breaks off after them."""


@given(st.integers(0, 300), st.integers(1, 500), st.integers(0, 5000), st.integers(1, 16), steps)
def test_every_byte_is_requested_once(
    first: int, size: int, rest: int, segments: int, taken: list[tuple[int, int, bool]]
) -> None:
    """Pieces end in any order. Those that break off are continued at their first missing byte."""
    total = first + size + rest
    pieces = pieces_of(first, first + size, total, segments)
    running, written = [pieces.first], [(0, first)]
    later = itertools.chain(taken, itertools.repeat((0, total, False)))

    while not pieces.complete:
        while len(running) < segments and (piece := pieces.take()) is not None:
            running.append(piece)
        number, most, breaks_off = next(later)
        piece = running[number % len(running)]
        count = min(most, piece.end - piece.at)
        written.append((piece.at, piece.at + count))
        pieces.wrote(piece, count)
        if breaks_off or piece.at == piece.end:
            running.remove(piece)
            pieces.give_back(piece)

        spans = sorted(span for span in written if span[0] < span[1])
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
        assert pieces.whole_bytes == _whole_bytes(spans)

    assert pieces.take() is None
    assert sum(end - at for at, end in written) == total


def _whole_bytes(spans: list[tuple[int, int]]) -> int:
    """Return the end of the first gapless run of the spans."""
    whole = 0
    for at, end in spans:
        if at > whole:
            break
        whole = end
    return whole


@given(st.integers(1, 1 << 40), st.integers(1, 16))
def test_pieces_are_within_their_bounds(total: int, segments: int) -> None:
    """Only the last piece may be smaller."""
    pieces = pieces_of(0, 1, total, segments)

    taken = [piece for _ in range(1000) if (piece := pieces.take()) is not None]

    assert all(piece.end - piece.at <= MOST_TIMES * LEAST for piece in taken)
    assert all(piece.end - piece.at >= LEAST for piece in taken if piece.end < total)


def test_a_returned_piece_comes_first() -> None:
    """The lowest offset comes first, as the body can be resumed up to it."""
    pieces = pieces_of(0, 100, 1000)
    one, two = pieces.take(), pieces.take()
    assert one is not None
    assert two is not None
    pieces.wrote(pieces.first, 100)
    pieces.wrote(two, 30)

    pieces.give_back(two)
    pieces.give_back(one)

    assert pieces.whole_bytes == one.at == 100
    assert [pieces.take(), pieces.take()] == [one, two]


def test_pieces_get_smaller_towards_the_end() -> None:
    """The last ones therefore end at about the same time."""
    pieces = pieces_of(0, 100, 10_000, segments=2)

    taken = [piece for _ in range(100) if (piece := pieces.take()) is not None]

    found = [piece.end - piece.at for piece in taken]
    assert found == sorted(found, reverse=True)
    assert (found[0], found[-2]) == (MOST_TIMES * LEAST, LEAST)
