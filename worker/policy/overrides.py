"""Policy tables set at run time for the whole fleet: kept in Redis, they override the policy file."""

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
"""Begins the field of a mark in the hash of the tables. No host does, and older versions skip its value."""

_table = msgspec.json.Decoder(dict[str, Any]).decode
_mark = msgspec.json.Decoder(PauseMark).decode

Edit = Callable[[Overrides, int], Overrides]
"""Returns the overrides after a change at a time (Unix ms)."""


class Edited(NamedTuple):
    """The overrides before and after a change."""

    before: Overrides
    after: Overrides


Fields = Mapping[str, Table | PauseMark]
"""The tables and marks as in Redis, by the field of the hash."""


async def read(redis: Redis) -> Overrides:
    """Return every table and mark; malformed ones are left out, as Redis is not trusted."""
    return overrides_of(await _read_fields(redis))


async def _read_fields(redis: Redis) -> Fields:
    fields: dict[str, Table | PauseMark] = {}
    for field, text in (await policy_tables(redis)).items():
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            name = field.decode()
            fields[name] = _mark(text) if name.startswith(MARK) else _table(text)
    return fields


def overrides_of(fields: Fields) -> Overrides:
    """Return the tables and marks by the canonical names of their hosts.

    Older versions wrote some hosts in other forms. If a host has tables under two names, the keys of the
    table with the canonical name count.
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
    """Return the field with the canonical name of its host; the field itself if it names none."""
    mark = MARK if field.startswith(MARK) else ""
    with suppress(PolicyError):
        return mark + lane_named(field.removeprefix(mark))
    return field


async def change(redis: Redis, notify: Notify, host: str, values: Mapping[str, Any | None]) -> Edited:
    """Set keys of a host's table (None removes a key), and notify the lanes it concerns.

    host: what names a host, a pattern or `default`. `paused` begins a pause, ends one, or lifts
    one of the policy file. Raises PolicyError, without any change, if the tables are invalid.
    """
    name = host_named(host)

    def edit(found: Overrides, now_ms: int) -> Overrides:
        others = dict(values)
        match others.pop(PAUSED, ...):
            case True:
                found = pauses.paused(found, name, {}, now_ms)
            case False:
                found = pauses.lifted(found, name)
            case None:
                found = pauses.forgotten(found, name)
            case invalid if invalid is not ...:
                others[PAUSED] = invalid
        table = {**found.tables.get(name, {}), **others}
        kept = {key: value for key, value in table.items() if value is not None}
        tables = {other: of for other, of in found.tables.items() if other != name}
        after = Overrides({**tables, name: kept} if kept else tables, found.marks)
        if any(value is not None for value in others.values()) or _fit(found):
            Policy().overridden(*after)
        return after

    return await _edit(redis, notify, name, edit)


def _fit(found: Overrides) -> bool:
    """Return whether the tables are valid. If they are not, keys can still be taken back one by one."""
    try:
        Policy().overridden(*found)
    except PolicyError:
        return False
    return True


async def pause(redis: Redis, notify: Notify, name: str, file: Policy) -> Edited:
    """Pause a host, a pattern or `default`, and notify the lanes it concerns."""
    in_file = file.pauses.in_file
    return await _edit(redis, notify, name, lambda found, now_ms: pauses.paused(found, name, in_file, now_ms))


async def resume(redis: Redis, notify: Notify, name: str, file: Policy, *, excepted: bool) -> Edited:
    """End the pause of a name, and notify the lanes it concerns.

    excepted: make an exception if a wider pause stops it; otherwise that raises StillPausedError.
    """
    in_file = file.pauses.in_file
    return await _edit(
        redis,
        notify,
        name,
        lambda found, now_ms: pauses.resumed(found, name, in_file, now_ms, excepted=excepted),
    )


async def _edit(redis: Redis, notify: Notify, name: str, edit: Edit) -> Edited:
    """Change the overrides, again if another operator was quicker; raises what `edit` raises."""
    now_ms = await redis_now_ms(redis)
    while True:
        version = await redis.get(keys.POLICY_VERSION)
        fields = await _read_fields(redis)
        before = overrides_of(fields)
        after = edit(before, now_ms)
        if await change_policy(redis, version=version or b"", fields=_changed(fields, after)):
            break
    first = 0
    while found := await redis.zrange(keys.ATTENTION, first, first + LANES_AT_ONCE - 1):
        lanes = [text_of(lane) for lane in found]
        await notify(await reschedule_lanes(redis, [lane for lane in lanes if concerns(name, lane)]))
        first += len(found)
    return Edited(before, after)


def _changed(fields: Fields, after: Overrides) -> dict[str, bytes]:
    """Return the fields of the hash that change, each with its new value, empty if it goes."""
    now: Fields = {**after.tables, **{MARK + name: mark for name, mark in after.marks.items()}}
    return {
        field: msgspec.json.encode(now[field]) if field in now else b""
        for field in fields.keys() | now.keys()
        if fields.get(field) != now.get(field)
    }
