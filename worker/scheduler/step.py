"""The instructions for a lane after one step of serving it. Pure."""

from typing import NamedTuple


class Continue(NamedTuple):
    """Take the next step at once."""


class WaitForChange(NamedTuple):
    """Nothing can start before something in the lane changes."""


class Wait(NamedTuple):
    """Nothing can start for so long, unless something in the lane changes."""

    wait_s: float


class Leave(NamedTuple):
    """Give the lane back."""


Step = Continue | WaitForChange | Wait | Leave
