"""The arq ingress: fetches that producers enqueue as jobs with arq's own client. The result is a receipt."""

import asyncio
import reprlib
from typing import Annotated, Any

import msgspec
from redis.asyncio import Redis
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import Submitter
from fetchfleet.jobs.contract.ids import batch_id_for
from fetchfleet.jobs.contract.messages import MAX_INPUT_BYTES, check_version, read_arguments
from fetchfleet.jobs.contract.result import Reason
from fetchfleet.jobs.errors import InvalidFetchError, JobsError, NewerMessageError
from fetchfleet.worker.intake.version_skew import UnsupportedVersionLog
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event

FETCH = "fetch"
REFUSED = "refused"
"""The function that replaces that of an invalid job: not JSON, or with an unknown function."""

EXCERPT_CHARS = 200
"""The maximum length of an invalid job in its dead letter, in characters."""
MAX_TIME_MS = 1 << 45
"""The latest enqueue time of a valid job, in Unix ms: about the year 3000."""
MAX_TRY = 1_000_000
"""The highest number of a try of a valid job."""


class ArqIngress:
    """Enqueues the fetches of arq jobs. An invalid job becomes a dead letter."""

    def __init__(self, redis: Redis, submitter: Submitter, log: FilteringBoundLogger) -> None:
        self._redis = redis
        self._submitter = submitter
        self._log = log
        self._unsupported_log = UnsupportedVersionLog("arq", log)

    async def fetch(self, run_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Enqueue the fetches of a job and return the receipt.

        args, kwargs: the arguments of the job. run_id: equal for each try of the same job, so its fetches are
        enqueued once. Raises InvalidFetchError, NewerMessageError, BatchError or FullError.
        """
        try:
            check_version(kwargs.get("v", 1))  # first, because a newer call may have any form
            if len(args) != 1 or kwargs.keys() - {"batch", "notify", "v"}:
                raise InvalidFetchError(  # noqa: TRY301 handled as those of read_arguments
                    "call fetch(fetches), optionally with batch=…, notify=… or v=…; fetches is one fetch or a"
                    " list"
                )
            # In a thread: a list of 100,000 fetches would delay the renewal of leases.
            arguments = args[0], kwargs.get("batch"), kwargs.get("notify")
            order = await asyncio.to_thread(read_arguments, *arguments)
            batch_id = order.batch or batch_id_for(run_id)
            receipt = await self._submitter.submit(order.fetches, batch_id=batch_id, notify=order.notify)
        except InvalidFetchError as error:
            await self.refuse(str(error), _excerpt(args))
            raise
        except NewerMessageError as error:
            self._unsupported_log.write(str(error))
            raise
        return {"batch": receipt.batch_to_follow, "ids": receipt.ids}

    async def refuse(self, note: str, excerpt: str) -> None:
        """Write a dead letter and a log line for an invalid job."""
        letter = {
            "door": "arq",
            "reason": Reason.INVALID.value,
            "note": note,
            "element": excerpt[:EXCERPT_CHARS],
        }
        await self._redis.xadd(keys.DEAD, letter, maxlen=keys.DEAD_LENGTH)  # type: ignore[arg-type]
        self._log.warning(Event.INTAKE_REFUSED, door="arq", error=redact.text(note))


class _Job(msgspec.Struct):
    """An arq job in the form that arq's serializer receives."""

    f: str
    """The name of the function."""
    a: list[Any]
    """The positional arguments."""
    k: dict[str, Any]
    """The keyword arguments."""
    et: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_MS)]
    """The enqueue time in Unix ms."""
    t: Annotated[int, msgspec.Meta(ge=0, le=MAX_TRY)] | None = None
    """The number of the try."""


_decode = msgspec.json.Decoder(_Job).decode


def read_job(known: frozenset[str], raw: bytes) -> dict[str, Any]:
    """Decode an arq job. If it is invalid, return a REFUSED job with the reason. Nothing is ever unpickled.

    known: the names of the functions.
    """
    if len(raw) > MAX_INPUT_BYTES:
        note = f"the job must have at most {MAX_INPUT_BYTES} bytes, got {len(raw)}"
        return _refusal(note, repr(raw[:EXCERPT_CHARS]))
    try:
        job = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        note = "not an arq job in JSON; use a JSON serializer (pickles are never loaded)"
        return _refusal(note, repr(raw[:EXCERPT_CHARS]))
    if job.f not in known:
        return _refusal(f"unknown function {job.f!r}; call {FETCH!r}", _excerpt(job.a))
    return msgspec.structs.asdict(job)


def write_result(result: Any) -> bytes:
    """Encode the result of a job as JSON, an exception as its message. Drop arguments that are not JSON."""
    try:
        return msgspec.json.encode(result, enc_hook=_as_text)
    except (ValueError, RecursionError):
        return msgspec.json.encode({**result, "a": [], "k": {}}, enc_hook=_as_text)


def _refusal(note: str, excerpt: str) -> dict[str, Any]:
    return {"f": REFUSED, "a": [note[:EXCERPT_CHARS], excerpt[:EXCERPT_CHARS]], "k": {}, "et": 0, "t": None}


def _excerpt(value: Any) -> str:
    """Return the beginning of a value that may be long or deeply nested."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = EXCERPT_CHARS
    return short.repr(value)[:EXCERPT_CHARS]


def _as_text(value: Any) -> str:
    return str(value) if isinstance(value, JobsError) else repr(value)
