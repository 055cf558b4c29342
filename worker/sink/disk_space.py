"""Whether a disk has room for more bodies. Pure."""

from typing import NamedTuple

FEW = 3
PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0


class Space(NamedTuple):
    """What a file system has left for us; free_files is None where it does not count them.

    refuses: it does not take what we write, whatever it says it has left (a quota, a disk that fails).
    """

    free_bytes: int
    free_files: int | None = None
    read_only: bool = False
    refuses: bool = False


class Refusals(NamedTuple):
    """What a disk did not take, with nothing that it took in between; no body is tried on it until then."""

    in_a_row: int = 0
    until_s: float = 0.0


def refused(before: Refusals, now_s: float) -> Refusals:
    """After another refusal; what was in flight when the last one came adds nothing to it.

    The first few cost no pause: they may be of one body that is too large for a quota, or of one bad sector.
    """
    if now_s < before.until_s:
        return before
    in_a_row = before.in_a_row + 1
    doublings = in_a_row - FEW
    pause_s = 0.0 if doublings < 0 else min(PAUSE_S * 2 ** min(doublings, 10), LONGEST_PAUSE_S)
    return Refusals(in_a_row, now_s + pause_s)


def lack(space: Space, least_bytes: int, *, lacked: bool) -> str | None:
    """What is wanting to go on: bytes, files or writing; None if nothing is.

    lacked: something was wanting until now; then an eighth more bytes must be free, so that a few that come
    and go do not turn a worker off and on.
    """
    if space.read_only or space.refuses:
        return "writing"
    if space.free_files == 0:
        return "files"
    wanted_bytes = least_bytes + least_bytes // 8 if lacked else least_bytes
    return "bytes" if space.free_bytes < wanted_bytes else None
