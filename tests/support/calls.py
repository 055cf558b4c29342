"""Script calls that any Redis answers, and one that it refuses."""

from jobs import keys
from jobs.scripts import Call
from tests.support.lanes import LANE

STALE = 0
ADOPT = Call("adopt", [keys.lane(LANE), keys.claimed(LANE)], [1])
CONTENTS = [keys.claimed(LANE), keys.later(LANE), *keys.waiting(LANE)]
SWEEP = Call("wake", [keys.lane(LANE), keys.ATTENTION, keys.SERIAL, *CONTENTS], [LANE, 1000])
WRONG = Call("adopt", [keys.ATTENTION, keys.claimed(LANE)], [1])
