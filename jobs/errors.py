"""The exceptions of the producer's client.

JobsError
├── BatchError
│   ├── BatchCancelledError   the batch is cancelled: nothing more can be submitted to it
│   ├── BatchExistsError      the batch ID belongs to a batch of other fetches
│   ├── BatchLostError        Redis lost earlier fetches of a batch during the submit
│   └── UnknownBatchError     no such batch: it never existed, or it has expired
├── FleetUnreachableError     Redis did not answer for redis_patience_s
├── KeyTypeConflictError      a Redis key of fetchfleet holds a value of another type
├── FullError
│   ├── FleetFullError        a backlog limit is reached
│   └── RedisFullError        Redis is at its maxmemory
├── InvalidFetchError         a fetch is invalid
├── NewerMessageError         a message or arq job needs a newer worker
├── RoleError                 a producer with a named inbox only cannot make this call
└── RedisSetupError           the Redis URL is malformed, or would disable certificate checks
    └── UnsupportedRedisError the server can never be used: in cluster mode, for example, or not Redis
"""

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

MAX_REFUSAL_CHARS = 500
"""Longest line of an error message that may quote a value; it goes to logs and dead letters."""


def shortened(message: str) -> str:
    """Cut each line of a message to MAX_REFUSAL_CHARS."""
    if len(message) <= MAX_REFUSAL_CHARS:
        return message
    lines = message.split("\n")
    return "\n".join(
        line if len(line) <= MAX_REFUSAL_CHARS else f"{line[: MAX_REFUSAL_CHARS - 1]}…" for line in lines
    )


class JobsError(Exception):
    """Base class of the exceptions of the producer's client."""


class InvalidFetchError(JobsError, ValueError):
    """A fetch is invalid. The message names the field, the error and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message))


class NewerMessageError(JobsError):
    """A message or arq job has a `v` that this release does not know; a newer worker can read it."""


class RoleError(JobsError):
    """A producer with a named inbox only, `Fleet(via="inbox")`, cannot make this call."""


class FleetUnreachableError(JobsError, RedisConnectionError):
    """Redis did not answer for the `redis_patience_s` of the Fleet; with an inbox: no worker answered.

    The workers continue. After an interrupted submit, the same submit under the same batch ID adds the rest.
    """

    def __init__(self, message: str, batch_id: str = "", position: str = "", enqueued: int = 0) -> None:
        super().__init__(message)
        self.batch_id = batch_id
        """Batch of the call; "" if the call concerns no batch."""
        self.position = position
        """Position of the last result read, for `Batch.results(after=position)`; "" if none was read."""
        self.enqueued = enqueued
        """Number of fetches of this submit that are certainly enqueued."""


class KeyTypeConflictError(JobsError, ResponseError):
    """A Redis key of fetchfleet holds a value of another type, written by another program.

    The call changed nothing.
    """

    def __init__(self, key: str, found: str, wanted: str) -> None:
        super().__init__(
            f"the Redis key {key} holds a {found}, not a {wanted}: another program has written it;"
            " RENAME or DEL it, or start a worker, which quarantines most such values, and try again"
        )
        self.key = key
        """Name of the key."""
        self.found = found
        """Type of the value found."""
        self.wanted = wanted
        """Type that fetchfleet needs."""


class RedisSetupError(JobsError, ValueError):
    """The Redis URL is malformed, or would disable certificate checks."""


class UnsupportedRedisError(RedisSetupError, ResponseError):
    """The server can never be used: it is in cluster mode, lacks scripts, is a Sentinel, or is not Redis."""


class FullError(JobsError):
    """A limit is reached: the backlog's or the memory's."""

    def __init__(self, message: str, batch_id: str = "", enqueued: int = 0) -> None:
        super().__init__(message)
        self.batch_id = batch_id
        """ID of the batch that was being submitted."""
        self.enqueued = enqueued
        """Number of its fetches that are enqueued."""


class FleetFullError(FullError):
    """The fleet or a lane has no room under `max_backlog` or `max_lane_backlog`."""


class RedisFullError(FullError):
    """Redis is at its maxmemory."""


class BatchError(JobsError):
    """The call cannot use this batch."""


class BatchCancelledError(BatchError):
    """The batch is cancelled; submit to another."""


class BatchExistsError(BatchError):
    """The batch ID belongs to a batch of other fetches."""


class BatchLostError(BatchError):
    """Redis lost earlier fetches of the batch during the submit, for example in a failover.

    The same submit under the same batch ID adds them.
    """


class UnknownBatchError(BatchError, KeyError):
    """Redis has no such batch: it never existed, or it expired 24 h after its last result."""

    def __str__(self) -> str:
        return str(self.args[0])
