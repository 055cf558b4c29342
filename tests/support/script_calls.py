"""Script calls that succeed on any Redis, and one that fails."""

from fetchfleet.jobs import keys
from fetchfleet.jobs.scripts.runner import Call
from tests.support.lanes import LANE

STALE = 0
"""The reply of ADOPT: no lane has this token."""

_CONTENTS = [keys.claimed(LANE), keys.later(LANE), *keys.waiting(LANE)]
ADOPT = Call("adopt", [keys.lane(LANE), keys.claimed(LANE)], [1])
RECLAIM = Call("reclaim_lane", [keys.lane(LANE), keys.ATTENTION, keys.SERIAL, *_CONTENTS], [LANE, 1000])
WRONG_TYPE = Call("adopt", [keys.ATTENTION, keys.claimed(LANE)], [1])
"""Fails once ATTENTION exists: it is a sorted set, and the script reads a hash."""
