"""The commands about the workers of a fleet: status, health, drain and undrain."""

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Annotated

import msgspec
import typer
from redis.asyncio import Redis

from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.redis_connection import redis_now_ms
from fetchfleet.worker.cli import render
from fetchfleet.worker.cli.common import echo, print_json, print_table, query
from fetchfleet.worker.cli.options.shared import Json, RedisPatience, RedisUrl
from fetchfleet.worker.errors import BAD_USE, UNREACHABLE, CommandError
from fetchfleet.worker.inspect.fleet_status import fleet_status
from fetchfleet.worker.inspect.snapshot import WorkerReport, is_alive, worker_reports, workers_called
from fetchfleet.worker.observability.process_health import ask_workers
from fetchfleet.worker.redis_support import drains

ANSWERS_WITHIN_S = 5.0
GIVES_BACK_WITHIN_S = 15.0
LOOK_EVERY_S = 0.1

Worker = Annotated[
    str,
    typer.Argument(
        metavar="WORKER",
        help="A worker's name or instance, as `status` shows it; or a machine, for all workers there.",
    ),
]
Live = Annotated[
    bool,
    typer.Option("--live", help="Check that the event loop of each worker here responds, without Redis."),
]
Ready = Annotated[bool, typer.Option("--ready", help="Check also that each worker here accepts work.")]


def register(app: typer.Typer) -> None:
    """Make the commands part of the app."""
    for command, arguments in ((health, " --ready"), (status, ""), (drain, " web-3"), (undrain, " web-3")):
        app.command(epilog=f"Example: fetchfleet {command.__name__}{arguments}")(command)


def health(redis: RedisUrl = None, live: Live = False, ready: Ready = False) -> None:  # noqa: FBT002 flags
    """Exit with 0 if a worker of this machine or container sends heartbeats, else with 1.

    With --live or --ready, ask the workers themselves, without Redis.
    """
    if live or ready:
        _ask_workers(ready=ready)
        return
    name = os.environ.get("FETCHFLEET_WORKER_ID") or socket.gethostname()
    try:
        is_well = query(redis, lambda _, client: is_alive(client, name), 0)
    except CommandError as error:
        if error.exit_code != UNREACHABLE:
            raise
        raise CommandError(str(error).partition("\n")[0]) from None
    if not is_well:
        raise CommandError("no worker of this machine sends heartbeats; its log may say why")


def _ask_workers(*, ready: bool) -> None:
    """Raise CommandError unless there are workers here and all of them are live, or also ready."""
    asked = ask_workers(os.environ.get("FETCHFLEET_WORKER_ID"))
    if not asked:
        raise CommandError("no worker of this user runs on this machine (or in this container)")
    faults = [
        f"process {at.pid} does not answer: its event loop does not turn" for at in asked if not at.reply
    ]
    if ready:
        faults += [f"{at.reply.worker} {why}" for at in asked if at.reply for why in at.reply.not_ready]
    if faults:
        raise CommandError("\n".join(faults))


def status(
    redis: RedisUrl = None,
    as_json: Json = False,  # noqa: FBT002 a flag
    redis_patience: RedisPatience = None,
) -> None:
    """Show the workers, the lanes and the backlog of a fleet."""
    found = query(redis, lambda _, client: fleet_status(client), redis_patience)
    if as_json:
        rates = {
            "finished_per_s": found.finished_per_s,
            "received_bytes_per_s": found.received_bytes_per_s,
        }
        print_json({**msgspec.to_builtins(found), **rates})
    else:
        print_table(render.status_of(found))


def drain(worker: Worker, redis: RedisUrl = None) -> None:
    """Make a worker return its lanes and accept no work until `undrain`."""

    async def ask(_: Fleet, client: Redis) -> dict[str, WorkerReport]:
        chosen = await _called(client, worker)
        now_ms = await redis_now_ms(client)
        await drains.forget_ended(client, [*await worker_reports(client)], now_ms)
        for instance in chosen:
            await drains.drain(client, instance, now_ms)
        reports = await _await(client, chosen, lambda of: of.draining, ANSWERS_WITHIN_S)
        unresponsive = [instance for instance, report in reports.items() if not report.draining]
        for instance in unresponsive:
            await drains.forget(client, instance)
        if unresponsive:
            raise CommandError(
                f"{', '.join(unresponsive)} did not answer: a worker of an older version cannot be drained;"
                " stop it with SIGTERM, which gives its lanes back as well"
            )
        return await _await(client, chosen, lambda of: not of.lanes, GIVES_BACK_WITHIN_S)

    for instance, report in query(redis, ask).items():
        in_flight = sum(lane.in_flight for lane in report.lanes.values())
        left = (
            f"{render.count(len(report.lanes), 'lane')} left, with {in_flight} in flight"
            if report.lanes
            else "holds no lane"
        )
        echo(f"{instance} is drained: {left}; take lanes again with: fetchfleet undrain {instance}")


def undrain(worker: Worker, redis: RedisUrl = None) -> None:
    """Let a drained worker acquire lanes again."""

    async def ask(_: Fleet, client: Redis) -> dict[str, WorkerReport]:
        chosen = await _called(client, worker)
        for instance in chosen:
            if instance in await drains.drained(client):
                await drains.undrain(client, instance)
        return await _await(client, chosen, lambda of: not of.draining, ANSWERS_WITHIN_S)

    for instance, report in query(redis, ask).items():
        echo(f"{instance} {'has not answered yet' if report.draining else 'takes lanes again'}")


async def _called(redis: Redis, worker: str) -> list[str]:
    """Return the instances of the workers that are meant; raises CommandError."""
    chosen = await workers_called(redis, worker)
    if not chosen:
        others = ", ".join(await worker_reports(redis)) or "none; start one: fetchfleet worker"
        raise CommandError(f"no live worker is called {worker}; live workers: {others}", BAD_USE)
    return chosen


async def _await(
    redis: Redis, instances: list[str], done: Callable[[WorkerReport], bool], within_s: float
) -> dict[str, WorkerReport]:
    """Return the workers' reports once all of them are done, or after within_s."""
    give_up_s = asyncio.get_running_loop().time() + within_s
    while True:
        found = await worker_reports(redis)
        reports = {instance: found.get(instance, WorkerReport()) for instance in instances}
        if all(map(done, reports.values())) or asyncio.get_running_loop().time() > give_up_s:
            return reports
        await asyncio.sleep(LOOK_EVERY_S)
