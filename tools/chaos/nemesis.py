"""Inject the planned faults and heal them."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import redis.asyncio
from redis.exceptions import RedisError

from tools.chaos import history, schedule
from tools.chaos.history import History
from tools.chaos.redis_server import Server
from tools.chaos.schedule import Kind
from tools.chaos.workers import Worker, WorkerPool

DEAD_ADDRESS = ("127.0.0.1", 1)
FEW_CLIENTS = 4
ENOUGH_CLIENTS = 10_000
SLOW_BY_S = (0.02, 0.3)


class Nemesis:
    """Injects faults (Jepsen's term). Each worker, and Redis, has at most one fault at a time."""

    def __init__(self, pool: WorkerPool, server: Server, history: History) -> None:
        self._pool = pool
        self._server = server
        self._history = history
        self._redis = asyncio.Lock()
        self._heal = asyncio.Event()
        self.counts: Counter[Kind] = Counter()

    async def inject(self, planned: Sequence[schedule.Fault], lasts_s: float) -> None:
        """Inject each fault at its time; return when all faults are healed."""
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as injecting:
            for fault in planned:
                await asyncio.sleep(began_s + fault.at_s - time.monotonic())
                injecting.create_task(self._inject(fault), name=fault.kind.value)
            await asyncio.sleep(began_s + lasts_s - time.monotonic())
            self._heal.set()

    async def _inject(self, fault: schedule.Fault) -> None:
        worker = None if fault.worker is None else self._pool.workers[fault.worker]
        if fault.kind is Kind.ALL_REPLACED:
            await self._replace_all(fault)
            return
        async with worker.lock if worker else self._redis:
            if self._heal.is_set():
                return
            name = worker.name if worker else ""
            from_s = time.monotonic()
            if worker:
                await self._inject_into_worker(fault, worker)
            else:
                await self._inject_into_redis(fault)
            self._record(fault.kind, name, from_s)

    def _record(self, kind: Kind, worker: str, from_s: float) -> None:
        self.counts[kind] += 1
        self._history.add("faults", [history.Fault(kind, worker, from_s, time.monotonic())])

    async def _wait(self, duration_s: float) -> None:
        """Wait for the duration of a fault, or until the run heals all faults."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._heal.wait(), duration_s)

    async def _replace_all(self, fault: schedule.Fault) -> None:
        """Replace the workers in turn. A deploy that has begun continues although the run heals faults."""
        from_s = time.monotonic()
        for worker in self._pool.workers:
            async with worker.lock:
                await worker.replace(fault.duration_s)
        self._record(fault.kind, "", from_s)

    async def _inject_into_worker(self, fault: schedule.Fault, worker: Worker) -> None:
        match fault.kind:
            case Kind.WORKER_KILLED:
                await worker.kill()
                await self._wait(fault.duration_s)
                worker.start()
            case Kind.WORKER_STOPPED:
                worker.process.send_signal(signal.SIGSTOP)
                await self._wait(fault.duration_s)
                worker.process.send_signal(signal.SIGCONT)
            case Kind.WORKER_REPLACED:
                await worker.replace(fault.duration_s)
            case Kind.CONNECTION_CUT:
                await worker.proxy.cut()
            case Kind.CONNECTION_BLACK_HOLED:
                worker.proxy.forwards.clear()
                await self._wait(fault.duration_s)
                await worker.proxy.cut()  # the data held back is lost
                worker.proxy.forwards.set()
            case Kind.CONNECTION_SLOW:
                worker.proxy.delay_s = SLOW_BY_S[0] + fault.duration_s % (SLOW_BY_S[1] - SLOW_BY_S[0])
                await self._wait(fault.duration_s)
                worker.proxy.delay_s = 0.0

    async def _inject_into_redis(self, fault: schedule.Fault) -> None:
        match fault.kind:
            case Kind.REDIS_RESTARTED | Kind.REDIS_KILLED:
                killed = fault.kind is Kind.REDIS_KILLED
                await self._server.end(signal.SIGKILL if killed else signal.SIGTERM)
                await self._wait(fault.duration_s)
                await self._server.start()
            case Kind.REDIS_FROZEN:
                self._server.send(signal.SIGSTOP)
                await self._wait(fault.duration_s)
                self._server.send(signal.SIGCONT)
            case Kind.REDIS_READONLY:
                async with self._admin() as admin:
                    await admin.replicaof(*DEAD_ADDRESS)
                    await self._wait(fault.duration_s)
                    await admin.replicaof("NO", "ONE")
            case Kind.CLIENTS_KILLED:
                async with self._admin() as admin:
                    await admin.client_kill_filter(_type="normal", skipme=True)
            case Kind.CLIENTS_REFUSED:
                async with self._admin() as admin:
                    await admin.config_set("maxclients", FEW_CLIENTS)
                    await admin.client_kill_filter(_type="normal", skipme=True)
                    await self._wait(fault.duration_s)
                    await admin.config_set("maxclients", ENOUGH_CLIENTS)

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[redis.asyncio.Redis]:
        """Yield a client with one connection, opened before the fault."""
        async with redis.asyncio.Redis.from_url(self._server.url, single_connection_client=True) as client:
            while True:
                with suppress(RedisError, OSError):
                    await client.ping()
                    break
                await asyncio.sleep(0.05)
            yield client
