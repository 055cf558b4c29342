"""The arq door: jobs that plain arq enqueued, whose result is a receipt."""

import asyncio
import reprlib
from typing import Annotated, Any

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import Submitter
from fetchfleet.jobs.contract.ids import batch_id_for
from fetchfleet.jobs.contract.messages import MAX_DOOR_BYTES, check_version, read_arguments
from fetchfleet.jobs.contract.model import Reason
from fetchfleet.jobs.errors import InvalidFetchError, JobsError, NewerMessageError
from fetchfleet.worker.intake.version_skew import Newer
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event

FETCH = "fetch"
REFUSED = "refused"
"""What a job becomes that is no JSON, or asks for something that we do not do."""

EXCERPT_CHARS = 200
MAX_TIME_MS = 1 << 45
MAX_TRY = 1_000_000


class ArqDoor:
    """Enqueues what the jobs ask for; what they may not ask for becomes a dead letter."""

    def __init__(self, redis: Redis, submitter: Submitter, log: Any) -> None:
        self._redis = redis
        self._submitter = submitter
        self._log = log
        self._newer = Newer("arq", log)

    async def fetch(self, run_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The receipt. run_id: the same for each run of the same job, so that it is enqueued once.

        Raises InvalidFetchError, NewerMessageError, BatchError or FullError.
        """
        try:
            # In a thread: there may be fetches by the hundred thousand, and lanes want their leases.
            order = await asyncio.to_thread(read_arguments, *_bound(*args, **kwargs))
            batch_id = order.batch or batch_id_for(run_id)
            receipt = await self._submitter.submit(order.fetches, batch_id=batch_id)
        except InvalidFetchError as error:
            await self.refuse(str(error), _excerpt(args))
            raise
        except NewerMessageError as error:
            self._newer.tell(str(error))
            raise
        return {"batch": receipt.handle, "ids": receipt.ids}

    async def refuse(self, note: str, found: str) -> None:
        """A dead letter and a log line for what was no order."""
        letter = {
            "door": "arq",
            "reason": Reason.INVALID.value,
            "note": note,
            "element": found[:EXCERPT_CHARS],
        }
        await self._redis.xadd(keys.DEAD, letter, maxlen=keys.DEAD_LENGTH)  # type: ignore[arg-type]
        self._log.warning(Event.INTAKE_REFUSED, door="arq", error=redact.text(note))


class _Job(msgspec.Struct):
    """An arq job as arq's serializer is given it."""

    f: str
    a: list[Any]
    k: dict[str, Any]
    et: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_MS)]
    t: Annotated[int, msgspec.Meta(ge=0, le=MAX_TRY)] | None = None


_decode = msgspec.json.Decoder(_Job).decode


def read_job(known: frozenset[str], raw: bytes) -> dict[str, Any]:
    """The job that arq found, or one of REFUSED that says what is wrong; nothing is ever unpickled."""
    if len(raw) > MAX_DOOR_BYTES:
        note = f"the job has {len(raw)} bytes, {MAX_DOOR_BYTES} are the most"
        return _refusal(note, repr(raw[:EXCERPT_CHARS]))
    try:
        job = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        note = "not an arq job as JSON; set the JSON serializer (a pickle is never loaded)"
        return _refusal(note, repr(raw[:EXCERPT_CHARS]))
    if job.f not in known:
        return _refusal(f"there is no function {job.f!r} here; call {FETCH!r}", _excerpt(job.a))
    return msgspec.structs.asdict(job)


def write_result(result: Any) -> bytes:
    """A job's result as JSON; an exception as what it says. Arguments that cannot be JSON are left out."""
    try:
        return msgspec.json.encode(result, enc_hook=_as_text)
    except (ValueError, RecursionError):
        return msgspec.json.encode({**result, "a": [], "k": {}}, enc_hook=_as_text)


def _refusal(note: str, found: str) -> dict[str, Any]:
    return {"f": REFUSED, "a": [note[:EXCERPT_CHARS], found[:EXCERPT_CHARS]], "k": {}, "et": 0, "t": None}


def _excerpt(value: Any) -> str:
    """The beginning of what may be long or deep."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = EXCERPT_CHARS
    return short.repr(value)[:EXCERPT_CHARS]


def _as_text(value: Any) -> str:
    return str(value) if isinstance(value, JobsError) else repr(value)


def _bound(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """The fetches, and the batch id if one was given. The version first: a newer call may have any form."""
    check_version(kwargs.get("v", 1))
    if len(args) != 1 or kwargs.keys() - {"batch", "v"}:
        raise InvalidFetchError(
            "call fetch(what), with batch=… or v=… if you like; what is a fetch or a list of them"
        )
    return args[0], kwargs.get("batch")
