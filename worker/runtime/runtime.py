"""The composition root: makes a worker's parts, takes lanes that arq hands over, keeps them alive.

arq's Worker is not known here: a hand-off (worker/runtime/arq_worker.py) is one method call.
"""

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable, Iterable

from redis.asyncio import Redis
from redis.exceptions import RedisError

from fetchfleet.jobs.client.submit import Limits
from fetchfleet.jobs.notify import Wake, arq_client, wake
from fetchfleet.jobs.redis_connection import connect, redis_now_ms
from fetchfleet.jobs.scripts.lanes import Early, Enough
from fetchfleet.worker.fetch.services import FetchServices
from fetchfleet.worker.http.connection_stats import Traffic
from fetchfleet.worker.http.factory import Exchanging, build_engine
from fetchfleet.worker.http.net.redis_guard import whereabouts
from fetchfleet.worker.intake.arq_jobs import ArqDoor
from fetchfleet.worker.intake.inbox import Intake
from fetchfleet.worker.lanes import log_events
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.settler import Settler
from fetchfleet.worker.lanes.store import Held, Store
from fetchfleet.worker.observability import events
from fetchfleet.worker.observability.log import Event, get_logger
from fetchfleet.worker.redis_support.errors import Trouble
from fetchfleet.worker.redis_support.key_repair import Foreign, PatientSubmitter, is_foreign
from fetchfleet.worker.redis_support.startup import allowed, reach
from fetchfleet.worker.runtime.disk_guard import LEFT_ALONE_S, Room
from fetchfleet.worker.runtime.heartbeat import Life
from fetchfleet.worker.runtime.live_policy import Steered
from fetchfleet.worker.runtime.stats import Heartbeat
from fetchfleet.worker.scheduler.acquire import Taking
from fetchfleet.worker.scheduler.balance import FleetLoad, share
from fetchfleet.worker.scheduler.drain import drain
from fetchfleet.worker.scheduler.leases import Leases
from fetchfleet.worker.scheduler.rebalancer import UNWANTED_S, Balancer
from fetchfleet.worker.scheduler.sweep import Housekeeping, Sweep
from fetchfleet.worker.settings import Settings
from fetchfleet.worker.sink.factory import sink_of
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import RedisClock, mono_s

LEAVE_S = 2.0
"""A Redis that does not answer for so long is not told that we leave the fleet: it finds out by itself."""

OWNERS_FIRST_S = 3.0
"""For so long after trouble with Redis nothing is swept: who held a lane may have results to tell."""


class Runtime:
    """One worker process. start() → take_lane() … → stop(); each may be called again without harm."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lanes: dict[str, Lane] = {}
        self.started = False
        self.stopping = False
        self._stopped = False
        self._grace_ends_s = 0.0
        self.log = get_logger(worker=settings.worker_id)
        self.tell = Trouble(self.log)
        self._tasks: list[asyncio.Task[None]] = []
        self._steered = Steered(settings.policy, self.lanes.values, self._changed, self._trouble, self.log)
        self._own: dict[str, asyncio.Task[None]] = {}
        self._troubled_s = mono_s()
        self._http: Exchanging | None = None
        self._store: Store | None = None
        self._sink = sink_of(settings)
        self._intake: Intake | None = None
        self._balancer = Balancer(self.lanes, self.log)
        self._traffic = Traffic()

    async def start(self) -> None:
        """Make the parts, the one client among them, and begin to show signs of life.

        Waits for a Redis that is still reading what it kept. Raises RefusedRedisError,
        UnreachableRedisError, PolicyError, redis.exceptions.RedisError or OSError.
        """
        self.redis: Redis = connect(self.settings.redis_url)
        try:
            with allowed():
                await self._start()
        except BaseException:
            await self._close()
            raise
        self.started = True
        loop = type(asyncio.get_running_loop()).__module__
        self.log.info(Event.WORKER_STARTED, out=str(self.settings.out), loop=loop)

    async def _start(self) -> None:
        await reach(self.redis, self.settings.redis_url, self.log)
        self._arq = arq_client(self.redis.connection_pool)
        self._http = build_engine(self.settings, await whereabouts(self.redis), self._traffic, self.log)
        self._foreign = Foreign(self.redis, int(self.settings.lease_s * 1000), self.log)
        for_all = self.settings.results_length > 0
        self._settler = Settler(self.redis, self._trouble, for_all=for_all, foreign=self._foreign)
        self._heartbeat = Heartbeat(self._traffic, self.lanes, self._settler, self.log)
        self.parts = await self._make_parts()
        lease_s = self.settings.lease_s
        self._leases = Leases(
            self.lanes, lease_s, self.parts.store, self.parts.clock, self._trouble, self.log
        )
        self._room = Room(self._sink.disk.space, self.settings.min_free_bytes, self.lanes, self.log)
        await self._room.look()
        self._taking = Taking(self.parts, self.lanes, self._begin, self._wants_lanes, random.sample)
        intake = self._make_doors()
        loops = {
            "settle": self._settler.run,
            "renew": self._leases.run,
            "foreign": self._foreign.run,
            "room": self._room.run,
            "heartbeat": self._heartbeat.run,
        }
        self._tasks = [self._keep(name, loop) for name, loop in loops.items()]
        await self.parts.store.renew([])  # whether we may run scripts
        await self._life.show()
        ours = {
            "sign of life": lambda: self._life.run(self._look),
            "lanes": self._taking.run,
            "intake": intake.run,
            "parts": self.parts.sink.disk.sweep_partial_files,
            "records": self.parts.sink.disk.sweep_index,
        }
        self._own = {name: self._keep(name, loop) for name, loop in ours.items()}

    def _keep(self, name: str, loop: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """A loop of the worker's own, in a task: a bug in it is told, and it goes on."""
        on_bug = functools.partial(events.worker_bug, name, log=self.log)
        return asyncio.create_task(aio.keep_going(loop, on_bug), name=name)

    async def clear_queue(self) -> None:
        """Nothing is in the hand-offs' queue that would end the loop that takes them."""
        await self._foreign.clear_queue()

    async def take_lane(self, name: str, generation: int, *, insist: bool = False) -> Early | Enough | None:
        """Take over a lane that is due and serve it in a task of its own.

        Early if it is not due yet, Enough if this worker has its share of the lanes; insist: take it
        all the same, since nobody else did.
        """
        if self.stopping:
            return Enough()
        if self._room.lacking:
            return Early(int(LEFT_ALONE_S * 1000))
        return await self._taking.take(name, generation, insist=insist)

    async def _begin(self, name: str, held: Held, asked_s: float, *, insisted: bool = False) -> None:
        """Serve a lane that is ours now."""
        self.parts.clock.sync(held.now_ms)
        await self._new_policy(held.policy_version)  # before a pause, or its end, is missed
        policy = self._steered.policy.for_lane(name)
        lane = Lane(name, held.token, policy, held.gate, self.parts.clock)
        lane.lease_ends_s = self._leases.end_s(asked_s)
        lane.cancel(held.cancelled)
        if insisted:
            lane.unwanted_until_s = asked_s + UNWANTED_S
        self.lanes[lane.pool] = lane
        if self.stopping:
            lane.leave()
        self._life.look_again()  # a batch may have been cancelled between the taking and here
        self.log.info(Event.LANE_TAKEN, lane=name, token=held.token, orphans=len(held.orphans))
        if not policy.verify:
            log_events.unverified_tls(lane, self.log)
        lane.task = asyncio.create_task(self._serve(lane, held.orphans), name=f"lane {name}")

    async def sweep(self) -> None:
        """Wake lanes whose owner died or whose hand-off was lost; not while Redis may just have come back."""
        if mono_s() - self._troubled_s < OWNERS_FIRST_S:
            return
        await self._sweep.run()
        await self._housekeeping.run()

    def leave(self) -> None:
        """Take no lane and begin no fetch any more; the grace of those in flight begins."""
        if self.stopping or not self.started:
            return
        self.stopping = True
        self._grace_ends_s = mono_s() + self.settings.grace_s
        self.log.info(Event.WORKER_STOPPING, lanes=len(self.lanes))
        for lane in self.lanes.values():
            lane.leave()

    async def stop(self) -> None:
        """Take nothing more, let short fetches end, hand the rest back, close everything."""
        self.leave()
        if self._stopped:
            return
        self._stopped = True
        await aio.for_at_most(LEAVE_S, self._leave_the_fleet())
        served = [lane.task for lane in self.lanes.values() if lane.task]
        if served:
            await asyncio.wait(served, timeout=max(0.0, self._grace_ends_s - mono_s()))
        for lane in self.lanes.values():
            lane.cut_short()
        if served:
            await asyncio.wait(served, timeout=self.settings.lease_s)
        await self._close()
        self._heartbeat.tell()
        self.log.info(Event.WORKER_STOPPED)

    async def _leave_the_fleet(self) -> None:
        """The inbox, and our share of the lanes, are the others'."""
        await aio.end(*self._own.values())
        if self._intake is not None:
            await self._intake.leave()
        await self._life.end()

    async def _close(self) -> None:
        still = [lane.task for lane in self.lanes.values() if lane.task]
        await aio.end(*still, *self._own.values(), *self._tasks)
        if self._intake is not None:
            await self._intake.aclose()
        if self._http is not None:
            await self._http.aclose()
        if self._store is not None:
            await self._store.aclose()
        self._sink.close()
        await self.redis.aclose()
        await self.redis.connection_pool.aclose()

    def _make_doors(self) -> Intake:
        """Whatever comes in (the intake is to be run), and how this worker shows itself to the others."""
        settings = self.settings
        limits = Limits(settings.max_backlog)
        submitter = PatientSubmitter(self._foreign, self.redis, self._send_wakes, limits)
        self.arq_door = ArqDoor(self.redis, submitter, self.log)
        self._intake = intake = Intake(settings.redis_url, settings.worker_id, submitter, self.tell, self.log)
        self._sweep = Sweep(self.parts.store, self._foreign, self._wake, self.log)
        self._housekeeping = Housekeeping(self.redis, settings.results_length, self.log)
        clock = self.parts.clock
        self._life = Life(
            self.redis,
            settings.worker_id,
            int(settings.lease_s * 1000),
            clock,
            self._cancel_in_lanes,
            self._new_policy,
            self._saw,
            self._trouble,
        )
        return intake

    async def _make_parts(self) -> FetchServices:
        assert self._http is not None
        clock = RedisClock()
        clock.sync(await redis_now_ms(self.redis))
        self._sink.open()
        self._store = Store(self.redis, self.settings.worker_id, int(self.settings.lease_s * 1000))
        return FetchServices(
            worker_id=self.settings.worker_id,
            user_agent=self.settings.user_agent,
            store=self._store,
            settler=self._settler,
            key_repair=self._foreign,
            engine=self._http.engine,
            pools=self._http.pools,
            sink=self._sink,
            clock=clock,
            slots=asyncio.Semaphore(self.settings.max_in_flight),
            quarantine=asyncio.Semaphore(1),
            policy=lambda: self._steered.policy,
            notify=self._wake,
            chance=random.random,
            report_redis_error=self._trouble,
            log=self.log,
        )

    async def _serve(self, lane: Lane, orphans: list[bytes]) -> None:
        try:
            await drain(lane, orphans, self.parts)
        finally:
            del self.lanes[lane.pool]
            self._taking.look_soon()

    async def _wake(self, wakes: Iterable[Wake]) -> None:
        """A wake that cannot be sent is made good by a sweep."""
        try:
            await self._send_wakes(wakes)
        except (RedisError, OSError) as error:
            self._trouble(error)

    async def _send_wakes(self, wakes: Iterable[Wake]) -> None:
        await wake(self._arq, wakes)

    async def _new_policy(self, version: bytes) -> None:
        await self._steered.heed(self.redis, version)

    def _changed(self, lane: Lane) -> None:
        self.parts.pools.heed(lane.pool, lane.policy)

    async def _cancel_in_lanes(self) -> None:
        """Some batch was cancelled somewhere; see in which of our lanes."""
        lanes = list(self.lanes.values())
        found = await self.parts.store.cancelled([lane.name for lane in lanes])
        for lane, batches in zip(lanes, found, strict=True):
            lane.cancel(batches)

    def _look(self) -> None:
        self._life.renews = self._leases.renews
        self._life.saw(self.lanes.values(), self._settler.finished, self.parts.sink.disk.received_bytes)

    def _saw(self, fleet: FleetLoad) -> None:
        """Once a second: give back what is more than our share, or look for what is missing of it."""
        self._balancer.look(fleet)
        if len(self.lanes) < min(fleet.busy, share(fleet)):
            self._taking.look_soon()

    def _wants_lanes(self) -> bool:
        return not self.stopping and not self._room.lacking

    def _trouble(self, error: BaseException) -> None:
        if is_foreign(error):
            self._foreign.look_soon()
        else:
            self._troubled_s = mono_s()
        self.tell(error)
