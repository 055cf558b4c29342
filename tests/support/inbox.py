"""Read messages of an inbox as the inbox reader does."""

from fetchfleet.jobs.scripts.inbox import InboxMessages
from fetchfleet.worker.intake.inbox import InboxReader
from fetchfleet.worker.intake.inbox_orders import TakenMessages, read_all


async def take_messages(intake: InboxReader, inbox: str = "") -> InboxMessages:
    """Take messages from a non-empty inbox."""
    taken = await intake.take(inbox)
    assert isinstance(taken, InboxMessages), taken
    return taken


def as_taken(taken: InboxMessages, inbox: str = "", reads: int | None = None) -> TakenMessages:
    """Parse messages that were taken, none of which is for a newer worker."""
    return TakenMessages(*taken, read_all(taken.messages, inbox, reads))
