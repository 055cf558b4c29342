"""The division of a body into pieces that are received at once, each by a range request. Pure."""

MOST_TIMES = 4
"""The size of the largest piece, as a multiple of the smallest."""


class Piece:
    """A part of a body: the bytes from `at` to `end` are still missing."""

    __slots__ = ("at", "end")

    def __init__(self, at: int, end: int) -> None:
        self.at = at
        """The offset of the first missing byte. It moves as the piece is written."""
        self.end = end

    def __repr__(self) -> str:
        return f"<Piece {self.at}-{self.end}>"


class Pieces:
    """The pieces of one body, in the order of their offsets.

    first: the piece whose response has begun. total_bytes: the length of the body. segments: the most pieces
    at once. least_bytes: the size of the smallest piece but the last.
    """

    def __init__(self, first: Piece, total_bytes: int, segments: int, least_bytes: int) -> None:
        self.first = first
        self.segments = segments
        self._next = first.end
        """The offset from which no piece has been made."""
        self._total_bytes = total_bytes
        self._least_bytes = least_bytes
        self._unfinished = [first]
        """The pieces that are being received or were returned, ordered by offset."""
        self._returned: list[Piece] = []
        """The pieces to request again from where they broke off, ordered by offset."""

    @property
    def whole_bytes(self) -> int:
        """The bytes from the start of the body of which none is missing."""
        return self._unfinished[0].at if self._unfinished else self._next

    @property
    def complete(self) -> bool:
        """True if no byte is missing."""
        return self.whole_bytes == self._total_bytes

    def take(self) -> Piece | None:
        """Return the next piece to request, None if all are being received.

        Pieces get smaller towards the end of the body, so that the last ones end at about the same time.
        """
        if self._returned:
            return self._returned.pop(0)
        left_bytes = self._total_bytes - self._next
        if not left_bytes:
            return None
        share_bytes = left_bytes // (2 * self.segments)
        size_bytes = max(self._least_bytes, min(share_bytes, MOST_TIMES * self._least_bytes))
        piece = Piece(self._next, min(self._next + size_bytes, self._total_bytes))
        self._next = piece.end
        self._unfinished.append(piece)
        return piece

    def wrote(self, piece: Piece, size_bytes: int) -> None:
        """Record that the next bytes of a piece are written."""
        piece.at += size_bytes
        if piece.at == piece.end:
            self._unfinished.remove(piece)

    def give_back(self, piece: Piece) -> None:
        """Let the missing bytes of a piece be requested again; nothing if none is missing."""
        if piece.at < piece.end:
            self._returned.append(piece)
            self._returned.sort(key=lambda one: one.at)
