"""Decides whether a disk has room for more bodies. Pure."""

from typing import NamedTuple

FREE_REFUSALS = 3
"""Refused bodies in a row without a pause: one may be too large for a quota, or hit a bad sector."""

PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0


class Space(NamedTuple):
    """The free space of a file system."""

    free_bytes: int
    free_files: int | None = None
    """None: the file system does not count files."""
    read_only: bool = False
    refuses: bool = False
    """The disk does not take writes, whatever space it reports: a quota, or a failing disk."""
    error: str | None = None
    """The error of the writes that are refused."""
    displaced: bool = False
    """Whether the path of the out folder leads to another folder, or nowhere, and that cannot be used."""
    reopened: str = ""
    """The path of the out folder if another folder was opened there since the last look."""
    disk_at_fault: bool = True
    """Whether the disk is full, read-only or failing. If not, the worker lacks descriptors or permissions."""


class Refusals(NamedTuple):
    """Bodies that the disk refused with none accepted in between. No body is tried before `until_s`."""

    in_a_row: int = 0
    until_s: float = 0.0


def refused(before: Refusals, now_s: float) -> Refusals:
    """Count another refusal. During a pause it adds nothing: that body was in flight when the pause began."""
    if now_s < before.until_s:
        return before
    in_a_row = before.in_a_row + 1
    doublings = in_a_row - FREE_REFUSALS
    pause_s = 0.0 if doublings < 0 else min(PAUSE_S * 2 ** min(doublings, 10), LONGEST_PAUSE_S)
    return Refusals(in_a_row, now_s + pause_s)


def lack(space: Space, least_bytes: int, *, lacked: bool) -> str | None:
    """Return what the disk lacks: "folder", "bytes", "files", "writing", or None.

    lacked: something was lacking until now. Then an eighth more bytes must be free, so that small changes do
    not stop and start a worker.
    """
    if space.displaced:
        return "folder"
    if space.read_only or space.refuses:
        return "writing"
    if space.free_files == 0:
        return "files"
    wanted_bytes = least_bytes + least_bytes // 8 if lacked else least_bytes
    return "bytes" if space.free_bytes < wanted_bytes else None
