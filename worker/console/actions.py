"""The changes that callers of the server make. Each is logged with the caller and the result."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from redis.asyncio import Redis
from starlette.requests import Request

from fetchfleet.jobs.client.batch import Counts, Submitted
from fetchfleet.jobs.client.dead_letters import DeadLetterFilter, Retried
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.worker.console.services import Caller, ConsoleServices, caller_of, services_of
from fetchfleet.worker.inspect.policy_in_force import policy_in_force
from fetchfleet.worker.inspect.snapshot import worker_reports
from fetchfleet.worker.inspect.views.hosts import known_or_similar
from fetchfleet.worker.lanes import reset as resets
from fetchfleet.worker.lanes.reset import LaneReset, lanes_of
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.names import host_named
from fetchfleet.worker.policy.overrides import Edited
from fetchfleet.worker.policy.pairs import encoded
from fetchfleet.worker.policy.pauses import pauses_of
from fetchfleet.worker.settings import NO_POLICY
from fetchfleet.worker.util.quantities import count

T = TypeVar("T")

RESET_TIMEOUT_S = 2.0
"""The time to wait until the workers have applied a reset."""
POLL_S = 0.1
EVERY_LETTER = "all"
"""The target of a change of every dead letter, in the log."""


class PolicyChange(msgspec.Struct, frozen=True, kw_only=True):
    """The effect of a pause, a resumption or a change of policy keys."""

    name: str
    """The host, the pattern or `default`, in its canonical form."""
    paused: bool
    """True if a pause set at run time stops the name."""
    not_stopped: list[str]
    """The exceptions that exempt names from a pause of this name."""
    paused_below: list[str]
    """The narrower names with a pause of their own."""
    keys: dict[str, Any]
    """The policy keys of the name that are set at run time."""
    known: bool
    """False if no fetch was sent to the name in the last two hours and none waits: it may be mistyped."""
    similar: list[str]
    """The hosts with a similar spelling, if the name is not known."""


class DeadLetterChange(msgspec.Struct, frozen=True, kw_only=True):
    """The effect of a retry of dead letters."""

    fetches: int = 0
    """The number of fetches that were enqueued again."""
    batches: list[str] = []
    """The IDs of their new batches."""
    left: int = 0
    """The number of letters that stay, because they have no fetch."""


class Actions:
    """The changes that one caller may make. Hosts are named in any form that the commands accept."""

    def __init__(self, services: ConsoleServices, caller: Caller) -> None:
        self._fleet = services.fleet
        self._redis = services.redis
        self._log = services.log
        self._caller = caller

    async def pause(self, host: str) -> PolicyChange:
        """Pause a host, a pattern or `default`. Raises PolicyError."""
        name = host_named(host)

        async def change(redis: Redis) -> Edited:
            file = (await policy_in_force(redis, NO_POLICY, name)).file
            return await overrides.pause(redis, self._fleet.notify, name, file)

        return await self._edit("pause", name, change)

    async def resume(self, host: str, *, excepted: bool = False) -> PolicyChange:
        """End a pause. excepted: also as an exception from wider pauses. Raises PolicyError."""
        name = host_named(host)

        async def change(redis: Redis) -> Edited:
            file = (await policy_in_force(redis, NO_POLICY, name)).file
            return await overrides.resume(redis, self._fleet.notify, name, file, excepted=excepted)

        return await self._edit("resume", name, change)

    async def set_policy(self, host: str, values: Mapping[str, Any | None]) -> PolicyChange:
        """Set policy keys; a value of None removes its key. Raises PolicyError."""
        name = host_named(host)
        return await self._edit(
            "policy",
            name,
            lambda redis: overrides.change(redis, self._fleet.notify, name, values),
            _changed_keys(values),
        )

    async def reset(self, host: str) -> list[LaneReset]:
        """Reset the lanes of a host, a pattern or `default`. Raises PolicyError."""
        name = host_named(host)
        by = f"{self._caller.name}@{self._caller.peer}"

        async def change(redis: Redis) -> list[LaneReset]:
            found = await resets.reset(redis, self._fleet.notify, await lanes_of(redis, name), by)
            workers = await worker_reports(redis)
            await resets.await_applied(redis, found, RESET_TIMEOUT_S if workers else 0, POLL_S)
            return found

        return await self._logged(
            "reset", name, self._fleet.call(change, self._redis), lambda found: count(len(found), "host")
        )

    async def submit(
        self, fetches: Sequence[Fetch] | AsyncIterator[Fetch], batch_id: str, notify: str | None = None
    ) -> Submitted:
        """Enqueue fetches as a batch. Raises the errors of `Fleet.submit`."""
        return await self._logged(
            "submit",
            batch_id,
            self._fleet.submit(fetches, batch_id=batch_id, notify=notify),
            lambda submitted: f"{submitted.receipt.count} fetches",
        )

    async def cancel(self, batch_id: str) -> Counts:
        """Cancel a batch. Raises UnknownBatchError, or ValueError for a malformed ID."""
        return await self._logged(
            "cancel",
            batch_id,
            self._fleet.batch(batch_id).cancel(),
            lambda counts: f"{counts.total - counts.done} fetches had no result",
        )

    async def retry_dead(self, selections: Iterable[DeadLetterFilter]) -> DeadLetterChange:
        """Enqueue the fetches of the selected dead letters again, and delete these letters."""
        selections = list(selections)

        async def change() -> DeadLetterChange:
            done = [await self._fleet.dead.retry(which) for which in selections]
            return _sum(done)

        def outcome(retried: DeadLetterChange) -> str:
            return f"{count(retried.fetches, 'fetch', 'fetches')}, {retried.left} left"

        return await self._logged("dead.retry", _target(selections), change(), outcome)

    async def purge_dead(self, selections: Iterable[DeadLetterFilter]) -> int:
        """Delete the selected dead letters; return their number."""
        selections = list(selections)

        async def change() -> int:
            return sum([await self._fleet.dead.purge(which) for which in selections])

        return await self._logged(
            "dead.purge", _target(selections), change(), lambda purged: count(purged, "letter")
        )

    async def _edit(
        self, action: str, name: str, change: Callable[[Redis], Awaitable[Edited]], result: str = "done"
    ) -> PolicyChange:
        edited = await self._logged(action, name, self._fleet.call(change, self._redis), lambda _: result)
        now = pauses_of(edited.after, {})
        known, similar = await self._fleet.call(known_or_similar, self._redis, name)
        return PolicyChange(
            name=name,
            paused=now.stop(name) is not None,
            not_stopped=now.not_stopped(name),
            paused_below=now.below(name),
            keys=dict(edited.after.tables.get(name, {})),
            known=known,
            similar=similar,
        )

    async def _logged(self, action: str, target: str, work: Awaitable[T], result: Callable[[T], str]) -> T:
        """Await the work and log it, whether it succeeds, fails or is cut off by the end of the server."""
        fields = {"action": action, "target": target, "by": self._caller.name, "peer": self._caller.peer}
        try:
            done = await work
        except Exception as error:
            self._log.info(Event.CONSOLE_ACTION, **fields, result=f"failed: {redact.text(error)}")
            raise
        except asyncio.CancelledError:
            self._log.info(Event.CONSOLE_ACTION, **fields, result="interrupted: it may be done in part")
            raise
        self._log.info(Event.CONSOLE_ACTION, **fields, result=result(done))
        return done


def actions_of(request: Request) -> Actions:
    """Return the changes that the caller of the request may make."""
    return Actions(services_of(request), caller_of(request))


def _sum(done: Iterable[Retried]) -> DeadLetterChange:
    done = list(done)
    return DeadLetterChange(
        fetches=sum(of.fetches for of in done),
        batches=[batch for of in done for batch in of.batches],
        left=sum(of.left for of in done),
    )


def _changed_keys(values: Mapping[str, Any | None]) -> str:
    """Return a change of policy keys in words, for the log."""
    words = (f"{key} unset" if value is None else f"{key}={encoded(value)}" for key, value in values.items())
    return redact.text(", ".join(words))


def _target(selections: list[DeadLetterFilter]) -> str:
    """Return the selected letters in words, for the log."""
    if len(selections) != 1:
        return count(len(selections), "letter")
    named = [f"{name} {value}" for name, value in selections[0]._asdict().items() if value is not None]
    return redact.text(", ".join(named) or EVERY_LETTER)
