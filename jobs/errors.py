"""The exceptions of the producer's client.

JobsError
├── BatchError
│   ├── BatchCancelledError   the batch was cancelled: nothing more may be submitted to it
│   ├── BatchExistsError      a batch of this id holds other fetches
│   ├── BatchLostError        Redis has lost fetches of a batch while it was submitted
│   └── UnknownBatchError     no such batch: never created, or its results have expired
├── FleetUnreachableError     Redis did not answer for as long as the caller's patience
├── KeyTypeConflictError      a Redis key of fetchfleet holds a value of another type
├── FullError
│   ├── FleetFullError        as many fetches wait as the caller's limits allow
│   └── RedisFullError        Redis has no memory for more
├── InvalidFetchError         a fetch that may not be enqueued; nothing of its call was
├── NewerMessageError         a message or arq job that only a newer worker can read
├── RoleError                 a call that a producer with an inbox alone may not make
└── RedisSetupError           a Redis URL that is malformed or would leave a certificate unchecked
    └── UnsupportedRedisError a server that can never be used: a Redis in cluster mode, or no Redis
"""

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

MAX_REFUSAL_CHARS = 500
"""Of a line of a refusal: it may quote a value of any length, and goes to logs and dead letters."""


def shortened(message: str) -> str:
    """Return the message, with each line cut off that is longer than MAX_REFUSAL_CHARS."""
    if len(message) <= MAX_REFUSAL_CHARS:
        return message
    lines = message.split("\n")
    return "\n".join(
        line if len(line) <= MAX_REFUSAL_CHARS else f"{line[: MAX_REFUSAL_CHARS - 1]}…" for line in lines
    )


class JobsError(Exception):
    """Base class of the exceptions of this package."""


class InvalidFetchError(JobsError, ValueError):
    """A fetch that may not be enqueued; the message names the field, the error and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message))


class NewerMessageError(JobsError):
    """A message or an arq job whose `v` this release does not know; a newer worker can read it."""


class RoleError(JobsError):
    """A call that a producer with an inbox alone (`Fleet(via="inbox")`) may not make."""


class FleetUnreachableError(JobsError, RedisConnectionError):
    """Redis, or by an inbox no worker, answered for as long as the `redis_patience_s` of the Fleet.

    The workers go on.

    batch_id: the batch of the call, empty if it was about none. position: of the last result read, for
    `Batch.results(after=position)`; empty if the call read no results. enqueued: the fetches of this submit
    that are certainly in. The same submit under the same batch id adds those that are not.
    """

    def __init__(self, message: str, batch_id: str = "", position: str = "", enqueued: int = 0) -> None:
        super().__init__(message)
        self.batch_id = batch_id
        self.position = position
        self.enqueued = enqueued


class KeyTypeConflictError(JobsError, ResponseError):
    """The Redis key `key` has the type `found`; fetchfleet needs `wanted`. Nothing was changed."""

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


class UnsupportedRedisError(RedisSetupError, ResponseError):
    """A server that fetchfleet cannot work with: a Redis in cluster mode, or no Redis."""


class FullError(JobsError):
    """A limit is reached; `batch_id` is the batch, `enqueued` how many of its fetches are in."""

    def __init__(self, message: str, batch_id: str = "", enqueued: int = 0) -> None:
        super().__init__(message)
        self.batch_id = batch_id
        self.enqueued = enqueued


class FleetFullError(FullError):
    """The fleet, or a lane, holds as many fetches as `max_backlog` or `max_lane_backlog` allow."""


class RedisFullError(FullError):
    """Redis has reached its maxmemory."""


class BatchError(JobsError):
    """A batch that the call cannot use."""


class BatchCancelledError(BatchError):
    """The batch was cancelled; submit to another."""


class BatchExistsError(BatchError):
    """A batch of that id holds other fetches; the same id is for the same fetches only."""


class BatchLostError(BatchError):
    """Redis has lost fetches of a batch that is being submitted, as a failover may do.

    The same submit under the same batch id adds them.
    """


class UnknownBatchError(BatchError, KeyError):
    """A batch id that Redis does not hold (results expire 24 h after the last one)."""

    def __str__(self) -> str:
        return str(self.args[0])
