"""What can go wrong on the producer's side.

JobsError
├── InvalidFetchError   a fetch that may not be enqueued; nothing of its call was
├── RedisSetupError     the Redis URL is no Redis URL
└── UnknownBatchError   no such batch: never made, or its results have expired
"""


class JobsError(Exception):
    """Anything this package raises on purpose."""


class InvalidFetchError(JobsError, ValueError):
    """A fetch that may not be enqueued; the message names the field, the fault and the remedy."""


class RedisSetupError(JobsError, ValueError):
    """A Redis URL that cannot be used."""


class UnknownBatchError(JobsError, KeyError):
    """A batch id that Redis does not hold (results expire 24 h after the last one)."""

    def __str__(self) -> str:
        return str(self.args[0])
