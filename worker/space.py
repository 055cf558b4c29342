"""Whether a disk has room for more bodies. Pure."""

from typing import NamedTuple


class Space(NamedTuple):
    """What a file system has left for us; free_files is None where it does not count them."""

    free_bytes: int
    free_files: int | None = None
    read_only: bool = False


def lack(space: Space, least_bytes: int, *, lacked: bool) -> str | None:
    """What is wanting to go on: bytes, files or writing; None if nothing is.

    lacked: something was wanting until now; then an eighth more bytes must be free, so that a few that come
    and go do not turn a worker off and on.
    """
    if space.read_only:
        return "writing"
    if space.free_files == 0:
        return "files"
    wanted_bytes = least_bytes + least_bytes // 8 if lacked else least_bytes
    return "bytes" if space.free_bytes < wanted_bytes else None
