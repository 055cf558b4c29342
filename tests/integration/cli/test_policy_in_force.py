"""The workers' policy in explain, policy show and status, on a machine without its file."""

import asyncio

import msgspec
import pytest

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import connect, redis_now_ms
from fetchfleet.worker.inspect.registration import registration_of
from fetchfleet.worker.inspect.snapshot import WorkerReport
from fetchfleet.worker.policy.file import Policy, parse_policy
from fetchfleet.worker.policy.published import published
from fetchfleet.worker.settings import NO_POLICY, Settings
from tests.support.commands import Commands

FILE = parse_policy('[default]\nconcurrency = 2\n[host."b.example"]\npaused = true\n', "0123456789abcdef")
OTHER = parse_policy("[default]\nattempts = 9\n", "fedcba9876543210")


@pytest.fixture
def commands(redis_url: str) -> Commands:
    """Return a terminal on another machine; one fetch waits for a.example, and two workers use FILE."""
    asyncio.run(set_up(redis_url, {"worker-1": FILE, "worker-2": FILE}))
    return Commands(redis_url)


async def set_up(redis_url: str, workers: dict[str, Policy]) -> None:
    """Enqueue a fetch, and let workers join as their heartbeats do."""
    async with Fleet(redis_url) as fleet, connect(redis_url) as redis:
        await fleet.submit(["http://a.example/"])
        now_ms = await redis_now_ms(redis)
        for name, policy in workers.items():
            registration = registration_of(Settings(worker_id=name, policy=policy), now_ms)
            report = msgspec.json.encode(WorkerReport(registration=registration))
            await redis.zadd(keys.WORKERS, {registration.instance: now_ms})
            await redis.set(keys.worker(registration.instance), report, px=keys.WORKER_TTL_MS)
            if policy.digest:
                await redis.set(
                    keys.policy_file(policy.digest), published(policy), px=keys.POLICY_FILE_TTL_MS
                )


def test_explain_and_policy_show_use_the_workers_policy_and_name_its_sources(commands: Commands) -> None:
    """Its concurrency, its file, and the keys set at run time."""
    commands.run("policy", "set", "a.example", "attempts=2")
    explained, shown = commands.json("explain", "a.example"), commands.json("policy", "show", "a.example")
    text, table = commands.run("explain", "a.example"), commands.run("policy", "show", "a.example")

    assert 2 == explained["concurrency"] == shown["concurrency"]
    assert explained["policy"] == shown["policy"]
    assert ("workers", "0123456789abcdef", []) == tuple(
        shown["policy"][key] for key in ("origin", "digest", "notes")
    )
    assert {"0123456789abcdef": ["worker-1", "worker-2"]} == shown["policy"]["workers"]
    assert {"source": "file", "table": "default"} == shown["policy"]["sources"]["concurrency"]
    assert {"source": "override", "table": "a.example"} == shown["policy"]["sources"]["attempts"]
    assert {"source": "default", "table": None} == shown["policy"]["sources"]["burst"]
    assert "0 of 2 in flight" in text
    assert "policy: file 01234567, of the workers; concurrency 2 (file, default)" in text
    assert "attempts 2 (override, a.example); the rest are defaults" in text
    assert ["concurrency", "2", "file,", "default"] == table.splitlines()[1].split()


def test_explain_says_that_the_workers_have_no_policy_file(redis_url: str) -> None:
    """Every value is then a default."""
    asyncio.run(set_up(redis_url, {"worker-1": NO_POLICY}))

    assert "policy: the workers have no file; every value is the default" in Commands(redis_url).run(
        "explain", "a.example"
    )


def test_a_pause_of_the_workers_file_is_seen_and_lifted(commands: Commands) -> None:
    """The file is not on this machine."""
    explained = commands.json("explain", "b.example")
    refused = commands.invoke("resume", "b.example")
    commands.run("resume", "b.example", "--except")

    assert "paused" == explained["state"]
    assert 2 == refused.exit_code
    assert "the policy file of the workers pauses b.example" in refused.output
    assert "idle" == commands.json("explain", "b.example")["state"]


def test_workers_that_differ_are_named_by_every_command(commands: Commands, redis_url: str) -> None:
    """`explain` and `policy show` list the values that differ for the host."""
    asyncio.run(set_up(redis_url, {"worker-3": OTHER}))
    explained, table = commands.run("explain", "a.example"), commands.run("policy", "show", "a.example")
    status = commands.run("status")
    policies = {worker["id"]: worker["policy"] for worker in commands.json("status")["workers"]}

    for text in (explained, table):
        assert "differ in their policy files: 01234567 on worker-1, worker-2; fedcba98 on worker-3" in text
        assert "worker-3 (fedcba98): concurrency 8 instead of 2, attempts 9 instead of 5 for a" in text
    assert "workers differ in their policy files: 01234567 (2), fedcba98 (1)" in status
    assert {"worker-1": FILE.digest, "worker-2": FILE.digest, "worker-3": OTHER.digest} == policies


def test_without_workers_the_defaults_are_assumed_with_a_notice(redis_url: str) -> None:
    """`explain` and `policy show` print the notice, and the JSON has the origin `assumed`."""
    commands = Commands(redis_url)
    outputs = [commands.run(*command, "a.example") for command in (("explain",), ("policy", "show"))]
    read = commands.json("explain", "a.example")["policy"]

    assert all("the built-in defaults are assumed" in text for text in outputs)
    assert ("assumed", {}) == (read["origin"], read["workers"])
    assert "every value is the default" in outputs[0]
