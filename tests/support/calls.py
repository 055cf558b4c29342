"""Script calls that any Redis answers, and one that it refuses."""

from fetchfleet.jobs import keys
from fetchfleet.jobs.scripts.runner import Call
from tests.support.lanes import LANE

STALE = 0
ADOPT = Call("adopt", [keys.lane(LANE), keys.claimed(LANE)], [1])
CONTENTS = [keys.claimed(LANE), keys.later(LANE), *keys.waiting(LANE)]
SWEEP = Call("reclaim_lane", [keys.lane(LANE), keys.ATTENTION, keys.SERIAL, *CONTENTS], [LANE, 1000])
WRONG = Call("adopt", [keys.ATTENTION, keys.claimed(LANE)], [1])
