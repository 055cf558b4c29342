"""What can go wrong on the producer's side.

JobsError
├── BatchError
│   ├── BatchCancelledError   the batch was cancelled: nothing more may be submitted to it
│   ├── BatchExistsError      the id is that of a batch of other fetches
│   └── UnknownBatchError     no such batch: never made, or its results have expired
├── KeyTypeConflictError          something else than fetchfleet has written to one of its Redis keys
├── FullError
│   ├── FleetFullError        as many fetches wait as the caller's limits allow
│   └── RedisFullError        Redis has no memory for more
├── InvalidFetchError         a fetch that may not be enqueued; nothing of its call was
├── NewerMessageError         what came in by a door says that only a newer worker can read it
└── RedisSetupError           the Redis URL is no Redis URL, or one that checks no certificate
"""

from redis.exceptions import ResponseError


class JobsError(Exception):
    """Anything this package raises on purpose."""


class InvalidFetchError(JobsError, ValueError):
    """A fetch that may not be enqueued; the message names the field, the fault and the remedy."""


class NewerMessageError(JobsError):
    """A message, or an arq job, whose `v` this release does not know: it is for a newer worker."""


class KeyTypeConflictError(JobsError, ResponseError):
    """`key` is of the type `found`, where fetchfleet has a `wanted`. Nothing was changed."""

    def __init__(self, key: str, found: str, wanted: str) -> None:
        super().__init__(
            f"the Redis key {key} is a {found}, not a {wanted}: something else has written it;"
            " RENAME or DEL it (of most keys a running worker sees to that) and try again"
        )
        self.key = key
        self.found = found
        self.wanted = wanted


class RedisSetupError(JobsError, ValueError):
    """A Redis URL that cannot be used."""


class FullError(JobsError):
    """No room for more; `batch_id` is that of the batch, `enqueued` how much of it is in."""

    def __init__(self, message: str, batch_id: str = "", enqueued: int = 0) -> None:
        super().__init__(message)
        self.batch_id = batch_id
        self.enqueued = enqueued


class FleetFullError(FullError):
    """The fleet, or a lane, holds as many fetches as `max_backlog` or `max_lane_backlog` allow."""


class RedisFullError(FullError):
    """Redis has reached its maxmemory."""


class BatchError(JobsError):
    """A batch that is not what the call needs."""


class BatchCancelledError(BatchError):
    """The batch was cancelled; begin another."""


class BatchExistsError(BatchError):
    """A batch of that id holds other fetches; the same id is for the same fetches only."""


class UnknownBatchError(BatchError, KeyError):
    """A batch id that Redis does not hold (results expire 24 h after the last one)."""

    def __str__(self) -> str:
        return str(self.args[0])
