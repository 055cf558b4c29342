"""The next action of the loop that serves a lane. Pure."""

from typing import NamedTuple


class Continue(NamedTuple):
    """Take the next step at once."""


class WaitForChange(NamedTuple):
    """Wait for a change of the lane."""


class Wait(NamedTuple):
    """Wait for a change of the lane, wait_s at most."""

    wait_s: float


class ReleaseLane(NamedTuple):
    """Release the lane."""


Step = Continue | WaitForChange | Wait | ReleaseLane
