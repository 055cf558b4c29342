"""Script calls that succeed on any Redis, one that fails, and a take from a non-empty inbox."""

from fetchfleet.jobs import keys
from fetchfleet.jobs.scripts.inbox import InboxMessages
from fetchfleet.jobs.scripts.runner import Call
from fetchfleet.worker.intake.inbox import InboxReader
from fetchfleet.worker.intake.inbox_orders import TakenMessages, read_all
from tests.support.lanes import LANE

STALE = 0
ADOPT = Call("adopt", [keys.lane(LANE), keys.claimed(LANE)], [1])
CONTENTS = [keys.claimed(LANE), keys.later(LANE), *keys.waiting(LANE)]
SWEEP = Call("reclaim_lane", [keys.lane(LANE), keys.ATTENTION, keys.SERIAL, *CONTENTS], [LANE, 1000])
WRONG = Call("adopt", [keys.ATTENTION, keys.claimed(LANE)], [1])


async def take_messages(intake: InboxReader, inbox: str = "") -> InboxMessages:
    """Take messages from a non-empty inbox."""
    taken = await intake.take(inbox)
    assert isinstance(taken, InboxMessages), taken
    return taken


def as_taken(taken: InboxMessages, inbox: str = "", reads: int | None = None) -> TakenMessages:
    """Read messages that were taken, none of which is for a newer worker."""
    return TakenMessages(*taken, read_all(taken.messages, inbox, reads))
