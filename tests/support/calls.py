"""Script calls that any Redis answers, one that it refuses, and a take of the inbox that finds messages."""

from fetchfleet.jobs import keys
from fetchfleet.jobs.scripts.inbox import InboxMessages
from fetchfleet.jobs.scripts.runner import Call
from fetchfleet.worker.intake.inbox import InboxReader
from tests.support.lanes import LANE

STALE = 0
ADOPT = Call("adopt", [keys.lane(LANE), keys.claimed(LANE)], [1])
CONTENTS = [keys.claimed(LANE), keys.later(LANE), *keys.waiting(LANE)]
SWEEP = Call("reclaim_lane", [keys.lane(LANE), keys.ATTENTION, keys.SERIAL, *CONTENTS], [LANE, 1000])
WRONG = Call("adopt", [keys.ATTENTION, keys.claimed(LANE)], [1])


async def take_messages(intake: InboxReader) -> InboxMessages:
    """Take messages out of an inbox that has some."""
    taken = await intake.take()
    assert isinstance(taken, InboxMessages), taken
    return taken
