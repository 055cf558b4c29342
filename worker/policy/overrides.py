"""Overrides: policy tables that operators set at run time. They are in Redis and override the policy file."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import Notify
from fetchfleet.jobs.redis_connection import redis_now_ms, text_of
from fetchfleet.jobs.scripts.host_control import change_policy, policy_tables
from fetchfleet.jobs.scripts.lanes import reschedule_lanes
from fetchfleet.worker.policy import pauses
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.policy.names import concerns, host_named, lane_named
from fetchfleet.worker.policy.pauses import PAUSED, Overrides, PauseMark, Table

LANES_AT_ONCE = 10_000

MARK = "!"
"""The prefix of the field of a mark in the hash of tables. No host begins with it; older versions skip it."""

_table = msgspec.json.Decoder(dict[str, Any]).decode
_mark = msgspec.json.Decoder(PauseMark).decode

Edit = Callable[[Overrides, int], Overrides]
"""Returns the overrides after a change. Its arguments are the overrides, and the time in Unix ms."""


class Edited(NamedTuple):
    """The result of a change."""

    before: Overrides
    after: Overrides


Fields = Mapping[str, Table | PauseMark]
"""The tables and marks as in Redis, by the field of the hash."""


async def read(redis: Redis) -> Overrides:
    """Return every table and mark. Malformed ones are skipped, because Redis is not trusted."""
    return overrides_of(await _read_fields(redis))


async def _read_fields(redis: Redis) -> Fields:
    fields: dict[str, Table | PauseMark] = {}
    for field, text in (await policy_tables(redis)).items():
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            name = field.decode()
            fields[name] = _mark(text) if name.startswith(MARK) else _table(text)
    return fields


def overrides_of(fields: Fields) -> Overrides:
    """Return the tables and marks by the canonical name of their host.

    Older versions wrote some hosts in other forms. If a host has tables under two names, they are merged; the
    keys of the table with the canonical name win.
    """
    tables: dict[str, Table] = {}
    marks: dict[str, PauseMark] = {}
    for field in sorted(fields, key=lambda field: (field == _canonical(field), field)):
        name, value = _canonical(field), fields[field]
        if isinstance(value, PauseMark):
            marks[name.removeprefix(MARK)] = value
        else:
            tables[name] = {**tables.get(name, {}), **value}
    return Overrides(tables, marks)


def _canonical(field: str) -> str:
    """Return the field with the canonical name of its host, or unchanged if it names no host."""
    mark = MARK if field.startswith(MARK) else ""
    with suppress(PolicyError):
        return mark + lane_named(field.removeprefix(mark))
    return field


async def change(redis: Redis, notify: Notify, host: str, values: Mapping[str, Any | None]) -> Edited:
    """Set keys of a table, and notify the lanes to which it applies. A value of None removes its key.

    host: a host, a pattern or `default`, in any form that host_named accepts. `paused`: true begins a pause,
    false lifts pauses of the policy file, None removes either. Raises PolicyError if the tables would be
    invalid; nothing is changed then.
    """
    name = host_named(host)

    def edit(current: Overrides, now_ms: int) -> Overrides:
        others = dict(values)
        match others.pop(PAUSED, ...):
            case True:
                current = pauses.paused(current, name, {}, now_ms)
            case False:
                current = pauses.lifted(current, name)
            case None:
                current = pauses.forgotten(current, name)
            case invalid if invalid is not ...:
                others[PAUSED] = invalid
        merged = {**current.tables.get(name, {}), **others}
        table = {key: value for key, value in merged.items() if value is not None}
        tables = {other: of for other, of in current.tables.items() if other != name}
        after = Overrides({**tables, name: table} if table else tables, current.marks)
        # Keys can be removed from invalid tables one by one.
        if any(value is not None for value in others.values()) or _is_valid(current):
            Policy().overridden(*after)
        return after

    return await _edit(redis, notify, name, edit)


def _is_valid(overrides: Overrides) -> bool:
    try:
        Policy().overridden(*overrides)
    except PolicyError:
        return False
    return True


async def pause(redis: Redis, notify: Notify, name: str, file: Policy) -> Edited:
    """Pause a host, a pattern or `default`, and notify the lanes that this stops."""
    in_file = file.pauses.in_file
    return await _edit(
        redis, notify, name, lambda current, now_ms: pauses.paused(current, name, in_file, now_ms)
    )


async def resume(redis: Redis, notify: Notify, name: str, file: Policy, *, excepted: bool) -> Edited:
    """End the pause of a host, a pattern or `default`, and notify its lanes.

    excepted: add an exception if a wider pause stops the name as well. Without it, StillPausedError is
    raised in that case.
    """
    in_file = file.pauses.in_file
    return await _edit(
        redis,
        notify,
        name,
        lambda current, now_ms: pauses.resumed(current, name, in_file, now_ms, excepted=excepted),
    )


async def _edit(redis: Redis, notify: Notify, name: str, edit: Edit) -> Edited:
    """Change the overrides; repeat if they were changed meanwhile. Raises what `edit` raises."""
    now_ms = await redis_now_ms(redis)
    while True:
        version = await redis.get(keys.POLICY_VERSION)
        fields = await _read_fields(redis)
        before = overrides_of(fields)
        after = edit(before, now_ms)
        if await change_policy(redis, version=version or b"", fields=_changed(fields, after)):
            break
    first = 0
    while page := await redis.zrange(keys.ATTENTION, first, first + LANES_AT_ONCE - 1):
        lanes = [text_of(lane) for lane in page]
        await notify(await reschedule_lanes(redis, [lane for lane in lanes if concerns(name, lane)]))
        first += len(page)
    return Edited(before, after)


def _changed(fields: Fields, after: Overrides) -> dict[str, bytes]:
    """Return the fields of the hash that change, with their new values; empty for a field to remove."""
    wanted: Fields = {**after.tables, **{MARK + name: mark for name, mark in after.marks.items()}}
    return {
        field: msgspec.json.encode(wanted[field]) if field in wanted else b""
        for field in fields.keys() | wanted.keys()
        if fields.get(field) != wanted.get(field)
    }
