"""Runs Lua scripts by digest; sends the source to a Redis that does not have it."""

import hashlib
import re
from collections.abc import Sequence
from functools import cache
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
from fetchfleet.jobs.compat import refuses_writes
from fetchfleet.jobs.contract.entry import MAX_ENTRY_BYTES
from fetchfleet.jobs.errors import KeyTypeConflictError

Arg = str | bytes | int | float

_REFUSALS = ("The user executing the script can't", "ACL failure in script")
"""Errors of a script that its Redis user may not run: of Redis 7.0, and of 7.2."""

_CONFLICT = re.compile(r'WRONGTYPE at "(.*)": a (\w+), not a (\w+)', re.DOTALL)
"""The error of `must_be` in jobs/lua/_common.lua."""


class Call(NamedTuple):
    """One script call."""

    script: str
    keys: Sequence[str]
    args: Sequence[Arg]


CLAIM_BYTES = 8 << 20
"""Approximate maximum size of the entries that a worker claims at once, in bytes."""

_KEY_NAMES = (
    f"local BATCH_PREFIX, RECORD_SUFFIX = '{key_names.batch('')}', '{key_names.RECORD_SUFFIX}'\n"
    f"local DEAD_KEY, DEAD_LENGTH = '{key_names.DEAD}', {key_names.DEAD_LENGTH}\n"
    f"local WEBHOOKS_KEY = '{key_names.WEBHOOKS}'\n"
    f"local MAX_ENTRY_BYTES, CLAIM_BYTES = {MAX_ENTRY_BYTES}, {CLAIM_BYTES}\n"
    f"local LANE_PREFIX = '{key_names.lane('')}'\n"
    f"local SEGMENT_PLACES = {key_names.RECORD_SEGMENT_PLACES}\n"
)
"""Constants of every script. Scripts build keys of batches: only they see the entries of a lane."""

_FOLDER = resources.files("fetchfleet.jobs") / "lua"
_COMMON = "_common"
_NAMES = re.compile(r"^local (?:function )?(\w+(?:, \w+)*)", re.MULTILINE)
_WORD = re.compile(r"\w+")


@cache
def _shared() -> list[tuple[str, set[str], set[str]]]:
    """Return the parts of _common.lua in reverse order, each with the names it defines and its words."""
    parts = (_FOLDER / f"{_COMMON}.lua").read_text().strip().split("\n\n")
    return [
        (part, {name for names in _NAMES.findall(part) for name in names.split(", ")}, {*_WORD.findall(part)})
        for part in reversed(parts)
    ]


@cache
def source_of(script: str) -> str:
    """Return a script with the shared functions that it uses; each costs time in every call."""
    source = (_FOLDER / f"{script}.lua").read_text()
    words = {*_WORD.findall(source)}
    for part, names, used in _shared():
        if names & words:
            source, words = f"{part}\n\n{source}", words | used
    return _KEY_NAMES + source


@cache
def digest_of(script: str) -> str:
    """Return the SHA-1 digest of a script, for EVALSHA."""
    return hashlib.sha1(source_of(script).encode()).hexdigest()  # noqa: S324 required by EVALSHA


def scripts() -> list[str]:
    """Return the names of all scripts."""
    return sorted({path.name.removesuffix(".lua") for path in _FOLDER.iterdir()} - {_COMMON})


async def run(redis: Redis, script: str, keys: Sequence[str], args: Sequence[Arg]) -> Any:
    """Run a script and return its reply: one round trip, two if Redis does not have the script."""
    try:
        try:
            return await redis.evalsha(digest_of(script), len(keys), *keys, *args)  # type: ignore[misc, arg-type]
        except NoScriptError:
            return await redis.eval(source_of(script), len(keys), *keys, *args)  # type: ignore[misc, arg-type]
    except ResponseError as error:
        raise named(error) from None


async def run_many(redis: Redis, calls: Sequence[Call]) -> list[Any]:
    """Run calls in one round trip and return their replies; a failed call returns its exception."""
    replies = await _pipelined(redis, calls)
    unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
    if unknown:
        for name in {calls[i].script for i in unknown}:
            await redis.script_load(source_of(name))
        retried = await _pipelined(redis, [calls[i] for i in unknown])
        for i, reply in zip(unknown, retried, strict=True):
            replies[i] = reply
    return [named(reply) if isinstance(reply, ResponseError) else reply for reply in replies]


def named(error: ResponseError) -> ResponseError:
    """Return the specific exception for an error in a script: before Redis 7 it is a general one."""
    text = str(error)
    if "OOM command not allowed" in text:
        return OutOfMemoryError(text)
    if conflict := _CONFLICT.search(text):
        return KeyTypeConflictError(*conflict.groups())
    if any(refusal in text for refusal in _REFUSALS):
        return NoPermissionError(text)
    if refuses_writes(error):
        return ReadOnlyError(text)
    return error


async def _pipelined(redis: Redis, calls: Sequence[Call]) -> list[Any]:
    """Send all calls at once and return their replies; errors of single calls are returned."""
    pool = redis.connection_pool
    connection = await pool.get_connection()
    try:
        await connection.send_packed_command(
            connection.pack_commands(
                [("EVALSHA", digest_of(script), len(keys), *keys, *args) for script, keys, args in calls]
            )
        )
        replies: list[Any] = []
        for _ in calls:
            try:
                replies.append(await connection.read_response())
            except ResponseError as error:
                replies.append(error)
    except BaseException:
        await connection.disconnect(nowait=True)  # replies may be unread
        raise
    else:
        return replies
    finally:
        await pool.release(connection)
