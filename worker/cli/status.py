"""The commands for the workers of a fleet: status, health, drain and undrain."""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import msgspec
import typer
from redis.asyncio import Redis

from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.redis_connection import redis_now_ms
from fetchfleet.worker.cli import render
from fetchfleet.worker.cli.common import echo, print_json, print_table, query, until_interrupted
from fetchfleet.worker.cli.live.watch import Screen, show_at_intervals
from fetchfleet.worker.cli.options.shared import Json, RedisPatience, RedisUrl
from fetchfleet.worker.errors import BAD_USE, UNREACHABLE, CommandError
from fetchfleet.worker.inspect.fleet_status import FleetStatus, fleet_status
from fetchfleet.worker.inspect.snapshot import WorkerReport, instances_named, is_alive, worker_reports
from fetchfleet.worker.observability.process_health import ask_workers
from fetchfleet.worker.redis_support import drains
from fetchfleet.worker.util.quantities import count

ANSWER_TIMEOUT_S = 5.0
RELEASE_TIMEOUT_S = 15.0
POLL_S = 0.1
WATCH_S, MIN_WATCH_S, MAX_WATCH_S = 2.0, 0.1, 3600.0
"""The interval of `--watch`, in seconds: the default, and its bounds."""

Worker = Annotated[
    str,
    typer.Argument(
        metavar="WORKER",
        help="Name or instance of a worker, as shown by status; or a machine name, for all its workers.",
    ),
]
Live = Annotated[
    bool,
    typer.Option("--live", help="Check that the event loop of each local worker responds."),
]
Ready = Annotated[
    bool, typer.Option("--ready", help="Check too that each local worker accepts work. Implies --live.")
]

Watch = Annotated[bool, typer.Option("--watch", help="Show it again and again, until interrupted.")]
Every = Annotated[
    float | None,
    typer.Option(
        "--every",
        metavar="SECONDS",
        min=MIN_WATCH_S,
        max=MAX_WATCH_S,
        help="The interval of --watch (default: 2). Implies --watch.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    for command, arguments in ((health, " --ready"), (status, ""), (drain, " web-3"), (undrain, " web-3")):
        app.command(epilog=f"Example: fetchfleet {command.__name__}{arguments}")(command)


def health(redis: RedisUrl = None, live: Live = False, ready: Ready = False) -> None:  # noqa: FBT002 flags
    """Exit with 0 if a worker on this machine sends heartbeats, with 1 if not.

    With --live or --ready, ask the workers on this machine directly, without Redis.

    In a container, these are the workers of the container.
    """
    if live or ready:
        _ask_workers(ready=ready)
        return
    name = os.environ.get("FETCHFLEET_WORKER_ID") or socket.gethostname()
    try:
        alive = query(redis, lambda _, client: is_alive(client, name), 0)
    except CommandError as error:
        if error.exit_code != UNREACHABLE:
            raise
        raise CommandError(str(error).partition("\n")[0]) from None
    if not alive:
        raise CommandError(f"no worker named {name} has sent a heartbeat recently; see its log")


def _ask_workers(*, ready: bool) -> None:
    """Raise CommandError unless this machine has workers and all of them are live and, if asked, ready."""
    replies = ask_workers(os.environ.get("FETCHFLEET_WORKER_ID"))
    if not replies:
        raise CommandError("no worker of this user runs on this machine (or in this container)")
    faults = [
        f"process {of.pid} does not answer: its event loop is blocked" for of in replies if not of.reply
    ]
    if ready:
        faults += [f"{of.reply.worker} {why}" for of in replies if of.reply for why in of.reply.not_ready]
    if faults:
        raise CommandError("\n".join(faults))


def status(
    redis: RedisUrl = None,
    as_json: Json = False,  # noqa: FBT002 a flag
    redis_patience: RedisPatience = None,
    *,
    watch: Watch = False,
    every_s: Every = None,
) -> None:
    """Show the workers, lanes and backlog of a fleet."""
    if watch or every_s is not None:
        with until_interrupted():
            query(redis, _watching(as_json=as_json, every_s=every_s or WATCH_S), redis_patience)
        return
    current = query(redis, lambda _, client: fleet_status(client), redis_patience)
    if as_json:
        _print_status(current)
    else:
        print_table(render.status_of(current))


def _watching(*, as_json: bool, every_s: float) -> Callable[[Fleet, Redis], Coroutine[Any, Any, None]]:
    """Return a question that shows the state at intervals and does not end."""
    screen = Screen()

    async def follow(fleet: Fleet, client: Redis) -> None:
        await show_at_intervals(
            lambda: fleet.call(fleet_status, client),
            _print_status if as_json else lambda current: screen.show(render.status_of(current)),
            every_s,
        )

    return follow


def _print_status(current: FleetStatus) -> None:
    """Print a state as JSON, on one line."""
    rates = {"finished_per_s": current.finished_per_s, "received_bytes_per_s": current.received_bytes_per_s}
    print_json({**msgspec.to_builtins(current), **rates})


def drain(worker: Worker, redis: RedisUrl = None) -> None:
    """Make a worker release its lanes and accept no work until it is undrained."""

    async def ask(_: Fleet, client: Redis) -> dict[str, WorkerReport]:
        instances = await _instances_of(client, worker)
        now_ms = await redis_now_ms(client)
        await drains.forget_ended(client, [*await worker_reports(client)], now_ms)
        for instance in instances:
            await drains.drain(client, instance, now_ms)
        reports = await _await(client, instances, lambda of: of.draining, ANSWER_TIMEOUT_S)
        unresponsive = [instance for instance, report in reports.items() if not report.draining]
        for instance in unresponsive:
            await drains.forget(client, instance)
        if unresponsive:
            raise CommandError(
                f"{', '.join(unresponsive)} did not answer: a worker of an older version cannot be drained;"
                " stop it with SIGTERM, which releases its lanes too"
            )
        return await _await(client, instances, lambda of: not of.lanes, RELEASE_TIMEOUT_S)

    for instance, report in query(redis, ask).items():
        in_flight = sum(lane.in_flight for lane in report.lanes.values())
        lanes = (
            f"still holds {count(len(report.lanes), 'lane')}, with {in_flight} in flight"
            if report.lanes
            else "holds no lane"
        )
        echo(f"{instance} is drained and {lanes}; undrain it with: fetchfleet undrain {instance}")


def undrain(worker: Worker, redis: RedisUrl = None) -> None:
    """Let a drained worker acquire lanes again."""

    async def ask(_: Fleet, client: Redis) -> dict[str, WorkerReport]:
        instances = await _instances_of(client, worker)
        for instance in instances:
            if instance in await drains.drained(client):
                await drains.undrain(client, instance)
        return await _await(client, instances, lambda of: not of.draining, ANSWER_TIMEOUT_S)

    for instance, report in query(redis, ask).items():
        echo(f"{instance} {'has not answered yet' if report.draining else 'acquires lanes again'}")


async def _instances_of(redis: Redis, worker: str) -> list[str]:
    """Return the instances of the live workers that an argument names. Raises CommandError if none."""
    instances = await instances_named(redis, worker)
    if not instances:
        others = ", ".join(await worker_reports(redis)) or "none; start one: fetchfleet worker"
        raise CommandError(f"no live worker is named {worker}; live workers: {others}", BAD_USE)
    return instances


async def _await(
    redis: Redis, instances: list[str], done: Callable[[WorkerReport], bool], timeout_s: float
) -> dict[str, WorkerReport]:
    """Return the workers' reports once all of them are done, or after timeout_s."""
    give_up_s = asyncio.get_running_loop().time() + timeout_s
    while True:
        live = await worker_reports(redis)
        reports = {instance: live.get(instance, WorkerReport()) for instance in instances}
        if all(map(done, reports.values())) or asyncio.get_running_loop().time() > give_up_s:
            return reports
        await asyncio.sleep(POLL_S)
