"""Runs the Lua scripts by digest, and sends the source to a Redis that does not know it."""

import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import (
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

from fetchfleet.jobs import keys as key_names
from fetchfleet.jobs.compat import takes_no_writes
from fetchfleet.jobs.contract.entry import MAX_ENTRY_BYTES
from fetchfleet.jobs.errors import KeyTypeConflictError

Arg = str | bytes | int | float

_REFUSALS = ("The user executing the script can't", "ACL failure in script")
"""The errors of Redis 7.0, and of 7.2, if a script does what its user may not."""

_CONFLICT = re.compile(r'WRONGTYPE at "(.*)": a (\w+), not a (\w+)', re.DOTALL)
"""The error of `must_be` in jobs/lua/_common.lua."""


class Call(NamedTuple):
    """One script call."""

    script: str
    keys: Sequence[str]
    args: Sequence[Arg]


_FILES = {path.name: path.read_bytes() for path in (resources.files("fetchfleet.jobs") / "lua").iterdir()}
CLAIM_BYTES = 8 << 20
"""About how many bytes of entries a worker claims at once."""

_KEY_NAMES = (
    f"local BATCH_PREFIX, RECORD_SUFFIX = '{key_names.batch('')}', '{key_names.RECORD_SUFFIX}'\n"
    f"local DEAD_KEY, DEAD_LENGTH = '{key_names.DEAD}', {key_names.DEAD_LENGTH}\n"
    f"local MAX_ENTRY_BYTES, CLAIM_BYTES = {MAX_ENTRY_BYTES}, {CLAIM_BYTES}\n"
    f"local LANE_PREFIX = '{key_names.lane('')}'\n"
    f"local SEGMENT_PLACES = {key_names.RECORD_SEGMENT_PLACES}\n"
).encode()
"""The scripts make the keys of records themselves: they alone see whose entries a lane holds."""

SOURCES = {
    name.removesuffix(".lua"): _KEY_NAMES + _FILES["_common.lua"] + text
    for name, text in _FILES.items()
    if name != "_common.lua"
}
_DIGESTS = {name: hashlib.sha1(text).hexdigest() for name, text in SOURCES.items()}  # noqa: S324 EVALSHA's own


async def run(redis: Redis, script: str, keys: Sequence[str], args: Sequence[Arg]) -> Any:
    """Return the script's reply. Takes one round trip, two if Redis did not know the script."""
    try:
        try:
            return await redis.evalsha(_DIGESTS[script], len(keys), *keys, *args)  # type: ignore[misc, arg-type]
        except NoScriptError:
            return await redis.eval(SOURCES[script].decode(), len(keys), *keys, *args)  # type: ignore[misc, arg-type]
    except ResponseError as error:
        raise _named(error) from None


async def run_many(redis: Redis, calls: Sequence[Call]) -> list[Any]:
    """Return the replies of many calls in one round trip; a call that Redis refuses returns its exception."""
    replies = await _pipelined(redis, calls)
    unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
    if unknown:
        for name in {calls[i].script for i in unknown}:
            await redis.script_load(SOURCES[name].decode())
        again = await _pipelined(redis, [calls[i] for i in unknown])
        for i, reply in zip(unknown, again, strict=True):
            replies[i] = reply
    return [_named(reply) if isinstance(reply, ResponseError) else reply for reply in replies]


def _named(error: ResponseError) -> ResponseError:
    """Return the specific exception for an error that a script met: Redis before 7 reports a general one."""
    text = str(error)
    if "OOM command not allowed" in text:
        return OutOfMemoryError(text)
    if conflict := _CONFLICT.search(text):
        return KeyTypeConflictError(*conflict.groups())
    if any(refusal in text for refusal in _REFUSALS):
        return NoPermissionError(text)
    if takes_no_writes(error):
        return ReadOnlyError(text)
    return error


async def _pipelined(redis: Redis, calls: Sequence[Call]) -> list[Any]:
    async with redis.pipeline(transaction=False) as pipe:
        for call in calls:
            pipe.evalsha(_DIGESTS[call.script], len(call.keys), *call.keys, *call.args)  # type: ignore[arg-type]
        return await pipe.execute(raise_on_error=False)
