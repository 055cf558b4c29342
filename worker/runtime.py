"""The composition root: makes a worker's parts, takes lanes that arq hands over, keeps them alive.

arq's Worker is not known here: a hand-off (worker/hand_off.py) is one method call.
"""

import asyncio
import random
from collections.abc import Iterable
from typing import Any

import httpx
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from jobs.connect import connect, redis_now_ms
from jobs.submit import Limits, Submitter
from jobs.wake import Wake, arq_client, wake
from worker import lines, overrides, tasks
from worker.clock import RedisClock, mono_s
from worker.doors import ArqDoor
from worker.drain import drain
from worker.housekeeping import Housekeeping
from worker.http.client import build_client, build_pools
from worker.http.engine import HttpxEngine
from worker.intake import Intake
from worker.lane import Lane
from worker.life import Life
from worker.log import Event, get_logger
from worker.parts import Parts
from worker.policy import PolicyError
from worker.settings import Settings
from worker.settle import Settler
from worker.sink.files import FileSink
from worker.store import TAKE_ANYWAY, Early, Enough, Held, Store
from worker.unreachable import redis_at

RENEWALS_A_LEASE = 3
LEASE_MARGIN_S = 1.0
"""We let go of a lane this long before Redis would give it to somebody else."""


class RefusedRedisError(Exception):
    """A Redis that would lose fetches; the message holds the remedy."""


class Runtime:
    """One worker process. start() → take_lane() … → stop(); each may be called again without harm."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lanes: dict[str, Lane] = {}
        self.stopping = False
        self.log = get_logger(worker=settings.worker_id)
        self._tasks: list[asyncio.Task[None]] = []
        self._policy = settings.policy
        self._policy_version = b""
        self._own: list[asyncio.Task[None]] = []
        self._renewed_s = mono_s()
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Make the parts, the one client among them, and begin to show signs of life.

        Raises RefusedRedisError, UnreachableRedisError, redis.exceptions.RedisError or OSError.
        """
        self.redis: Redis = connect(self.settings.redis_url)
        await self._reach_redis()
        self._arq = arq_client(self.redis.connection_pool)
        self._pools = build_pools(self.settings)
        self._client = build_client(self.settings, self._pools)
        self._settler = Settler(self.redis, self._trouble, for_all=self.settings.results_length > 0)
        self.parts = await self._make_parts()
        self._make_doors()
        loops = {
            "settle": self._settler.run(),
            "renew": self._renew_loop(),
        }
        self._tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
        await self._life.show()
        ours = {"sign of life": self._life.run(self._look), "intake": self._intake.run()}
        self._own = [asyncio.create_task(loop, name=name) for name, loop in ours.items()]
        loop = type(asyncio.get_running_loop()).__module__
        self.log.info(Event.WORKER_STARTED, out=str(self.settings.out), loop=loop)

    async def take_lane(self, name: str, generation: int, *, insist: bool = False) -> Early | Enough | None:
        """Take over a lane that is due and serve it in a task of its own.

        Early if it is not due yet, Enough if this worker has its share of the lanes; insist: take it
        all the same, since nobody else did.
        """
        if self.stopping:
            return Enough()
        asked_s = mono_s()
        share = TAKE_ANYWAY if insist else len(self.lanes)
        held = await self.parts.store.take(name, generation, share)
        if not isinstance(held, Held):
            return held
        self.parts.clock.sync(held.now_ms)
        if held.policy_version != self._policy_version:
            await self._new_policy(held.policy_version)  # before a pause, or its end, is missed
        policy = self._policy.for_lane(name)
        lane = Lane(name, held.token, policy, held.gate, self.parts.clock)
        lane.lease_ends_s = self._lease_end_s(asked_s)
        lane.cancel(held.cancelled)
        self.lanes[lane.pool] = lane
        self._life.look_again()  # a batch may have been cancelled between the taking and here
        self.log.info(Event.LANE_TAKEN, lane=name, token=held.token, orphans=len(held.orphans))
        lane.task = asyncio.create_task(self._serve(lane, held.orphans), name=f"lane {name}")
        return None

    async def sweep(self) -> None:
        """Wake lanes whose owner died or whose hand-off was lost."""
        rescued = await self.parts.store.rescue()
        for found, owner in rescued:
            self.log.warning(Event.LANE_RESCUED, lane=found.lane, owner=owner or None)
        await self._wake([found for found, _ in rescued])
        await self._housekeeping.run()

    async def stop(self) -> None:
        """Take nothing more, let short fetches end, hand the rest back, close everything."""
        if self.stopping:
            return
        self.stopping = True
        self.log.info(Event.WORKER_STOPPING, lanes=len(self.lanes))
        for lane in self.lanes.values():
            lane.leave()
        await self._leave_the_fleet()
        served = [lane.task for lane in self.lanes.values() if lane.task]
        if served:
            await asyncio.wait(served, timeout=self.settings.grace_s)
        for lane in self.lanes.values():
            lane.cut_short()
        if served:
            await asyncio.wait(served, timeout=self.settings.lease_s)
        await self._close()
        self.log.info(Event.WORKER_STOPPED)

    async def _leave_the_fleet(self) -> None:
        """The inbox, and our share of the lanes, are the others'."""
        await tasks.end(*self._own)
        await self._intake.leave()
        await self._life.end()

    async def _close(self) -> None:
        still = [lane.task for lane in self.lanes.values() if lane.task]
        await tasks.end(*still, *self._tasks)
        await self._intake.aclose()
        if self._client is not None:
            await self._client.aclose()
        await self.redis.aclose()
        await self.redis.connection_pool.aclose()

    async def _reach_redis(self) -> None:
        """At the start a Redis that does not answer is an error; later it is only waited for."""
        with redis_at(self.settings.redis_url):
            await _refuse_lossy(self.redis)

    def _make_doors(self) -> None:
        """Whatever comes in, and how this worker shows itself to the others."""
        settings = self.settings
        submitter = Submitter(self.redis, self._send_wakes, Limits(settings.max_backlog))
        self.arq_door = ArqDoor(self.redis, submitter, self.log)
        self._intake = Intake(settings.redis_url, settings.worker_id, submitter, self.log)
        self._housekeeping = Housekeeping(self.redis, settings.results_length, self.log)
        clock = self.parts.clock
        self._life = Life(
            self.redis, settings.worker_id, clock, self._cancel_in_lanes, self._new_policy, self._trouble
        )

    async def _make_parts(self) -> Parts:
        assert self._client is not None
        clock = RedisClock()
        clock.sync(await redis_now_ms(self.redis))
        sink = FileSink(self.settings.out)
        sink.open()
        return Parts(
            settings=self.settings,
            store=Store(self.redis, self.settings.worker_id, int(self.settings.lease_s * 1000)),
            settler=self._settler,
            engine=HttpxEngine(self._client),
            pools=self._pools,
            sink=sink,
            clock=clock,
            slots=asyncio.Semaphore(self.settings.max_in_flight),
            policy=lambda: self._policy,
            wake=self._wake,
            chance=random.random,
            log=self.log,
        )

    async def _serve(self, lane: Lane, orphans: list[bytes]) -> None:
        try:
            await drain(lane, orphans, self.parts)
        finally:
            del self.lanes[lane.pool]

    async def _wake(self, wakes: Iterable[Wake]) -> None:
        """A wake that cannot be sent is made good by a sweep."""
        try:
            await self._send_wakes(wakes)
        except (RedisError, OSError) as error:
            self._trouble(error)

    async def _send_wakes(self, wakes: Iterable[Wake]) -> None:
        await wake(self._arq, wakes)

    async def _renew_loop(self) -> None:
        """Prolong every lease in one call, off the path of any fetch."""
        while True:
            self._renewed_s = mono_s()
            await asyncio.sleep(self.settings.lease_s / RENEWALS_A_LEASE)
            lanes = list(self.lanes.values())
            if lanes:
                await self._renew(lanes)
            for lane in lanes:
                if not lane.live and not lane.lost:
                    lane.lose()

    async def _renew(self, lanes: list[Lane]) -> None:
        asked_s = mono_s()
        try:
            async with asyncio.timeout(self.settings.lease_s / RENEWALS_A_LEASE):
                reply = await self.parts.store.renew([(lane.name, lane.token) for lane in lanes])
        except (RedisError, OSError) as error:
            self._trouble(error)
            return
        now_ms, kept = reply
        self.parts.clock.sync(now_ms)
        for lane, ours in zip(lanes, kept, strict=True):
            if ours:
                lane.lease_ends_s = self._lease_end_s(asked_s)
            elif self.lanes.get(lane.pool) is lane and not lane.released:
                lane.lose()

    def _lease_end_s(self, asked_s: float) -> float:
        """By our own clock, counted from before we asked: earlier than Redis's end of it."""
        margin_s = min(LEASE_MARGIN_S, self.settings.lease_s / 4)
        return asked_s + self.settings.lease_s - margin_s

    async def _new_policy(self, version: bytes) -> None:
        """The fleet's tables have changed: they hold from now on, in our lanes too."""
        if version == self._policy_version:
            return
        try:
            tables = await overrides.read(self.redis)
            self._policy_version = version
            self._policy = self.settings.policy.overridden(tables)
        except (RedisError, OSError) as error:
            self._trouble(error)
            return
        except PolicyError as error:
            self.log.warning(Event.POLICY_REFUSED, error=str(error))
            return
        self.log.info(Event.POLICY_CHANGED, tables=sorted(tables))
        for lane in self.lanes.values():
            lane.policy = self._policy.for_lane(lane.name)
            lane.notify()

    async def _cancel_in_lanes(self) -> None:
        """Some batch was cancelled somewhere; see in which of our lanes."""
        lanes = list(self.lanes.values())
        found = await self.parts.store.cancelled([lane.name for lane in lanes])
        for lane, batches in zip(lanes, found, strict=True):
            lane.cancel(batches)

    def _look(self) -> None:
        self._life.renews = mono_s() - self._renewed_s <= self.settings.lease_s
        self._life.saw(self.lanes.values(), self._settler.finished, self.parts.sink.received_bytes)

    def _trouble(self, error: BaseException) -> None:
        lines.redis_trouble(error, self.log)


async def _refuse_lossy(redis: Redis) -> None:
    """A Redis that evicts keys would drop fetches silently."""
    try:
        # Not CONFIG GET: who may call that may read Redis's own passwords.
        found: dict[str, Any] = await redis.info("memory")
    except ResponseError:
        return  # a managed Redis may not tell
    policy = found.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise RefusedRedisError(
            f"Redis has maxmemory-policy {policy}, which drops fetches when memory is short;"
            " set it to noeviction: redis-cli CONFIG SET maxmemory-policy noeviction"
        )
