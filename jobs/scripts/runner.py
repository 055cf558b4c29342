"""The Lua scripts: loaded once, run by digest, sent again when Redis has forgotten them."""

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

from fetchfleet.jobs.compat import takes_no_writes
from fetchfleet.jobs.errors import KeyTypeConflictError

Arg = str | bytes | int | float

_REFUSALS = ("The user executing the script can't", "ACL failure in script")
"""What Redis 7.0, and what 7.2 says when a script does what its user may not."""

_FOREIGN = re.compile(r'WRONGTYPE at "(.*)": a (\w+), not a (\w+)', re.DOTALL)
"""What `must_be` of jobs/lua/_common.lua says."""


class Call(NamedTuple):
    """One script call: which, with what."""

    script: str
    keys: Sequence[str]
    args: Sequence[Arg]


def _sources() -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in (resources.files("fetchfleet.jobs") / "lua").iterdir()}
    common = files.pop("_common.lua")
    return {name.removesuffix(".lua"): common + text for name, text in files.items()}


SOURCES = _sources()
_DIGESTS = {name: hashlib.sha1(text).hexdigest() for name, text in SOURCES.items()}  # noqa: S324 EVALSHA's own


async def run(redis: Redis, script: str, keys: Sequence[str], args: Sequence[Arg]) -> Any:
    """The script's reply. One round trip, two when Redis did not know the script."""
    try:
        return await _run(redis, script, keys, args)
    except ResponseError as error:
        raise _named(error) from None


async def _run(redis: Redis, script: str, keys: Sequence[str], args: Sequence[Arg]) -> Any:
    try:
        return await redis.evalsha(_DIGESTS[script], len(keys), *keys, *args)  # type: ignore[misc, arg-type]
    except NoScriptError:
        return await redis.eval(SOURCES[script].decode(), len(keys), *keys, *args)  # type: ignore[misc, arg-type]


async def run_many(redis: Redis, calls: Sequence[Call]) -> list[Any]:
    """The replies of many calls in one round trip. Calls that Redis refuses come back as exceptions."""
    replies = await _pipelined(redis, calls)
    unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
    if unknown:
        await _load(redis, {calls[i].script for i in unknown})
        again = await _pipelined(redis, [calls[i] for i in unknown])
        for i, reply in zip(unknown, again, strict=True):
            replies[i] = reply
    return [_named(reply) if isinstance(reply, ResponseError) else reply for reply in replies]


def _named(error: ResponseError) -> ResponseError:
    """Redis hides some of what went wrong in a script behind a general error: before 7 all of it."""
    text = str(error)
    if "OOM command not allowed" in text:
        return OutOfMemoryError(text)
    if foreign := _FOREIGN.search(text):
        return KeyTypeConflictError(*foreign.groups())
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


async def _load(redis: Redis, names: set[str]) -> None:
    for name in names:
        await redis.script_load(SOURCES[name].decode())
