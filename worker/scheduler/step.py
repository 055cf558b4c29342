"""The instructions for a lane after one step of serving it. Pure."""

from typing import NamedTuple


class Continue(NamedTuple):
    """Take the next step at once."""


class WaitForChange(NamedTuple):
    """The verdict that no fetch can start before the lane changes."""


class Wait(NamedTuple):
    """The verdict that no fetch can start for some time, unless the lane changes."""

    wait_s: float


class ReleaseLane(NamedTuple):
    """Give the lane back."""


Step = Continue | WaitForChange | Wait | ReleaseLane
