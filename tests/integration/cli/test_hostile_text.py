"""Hostile text in Redis, read by every command."""

import asyncio
import json

import msgspec

from fetchfleet import Fleet, Outcome, Reason, Result
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.fetch import encode
from fetchfleet.jobs.contract.safe_text import UNSAFE
from fetchfleet.jobs.redis_connection import connect, redis_now_ms
from fetchfleet.worker.inspect.registration import Registration
from fetchfleet.worker.inspect.snapshot import LaneReport, WorkerReport
from tests.support.commands import Commands

HOSTILE = "a\x1b[31m\x9b2J\u202eb\u2028c\U000e0041\r\n[red]d[/red]"
HOST = "a.example"
BATCH = "0123456789abcdef"
RESULT = Result(
    id=f"{BATCH}-00000000",
    url=f"http://{HOST}/",
    outcome=Outcome.FAILED,
    worker=HOSTILE,
    final_url=f"http://{HOST}/{HOSTILE}",
    reason=Reason.HTTP_STATUS,
    path=HOSTILE,
    etag=HOSTILE,
    content_encoding="\x9b31m",
    meta={HOSTILE: HOSTILE},
    dest=HOSTILE,
    key=HOSTILE,
)


async def fill(redis_url: str) -> None:
    """Put hostile text into every key that a command reads; a fetch waits for HOST."""
    async with Fleet(redis_url) as fleet, connect(redis_url) as redis:
        await fleet.submit([f"http://{HOST}/"])
        now_ms = await redis_now_ms(redis)
        state = {"gate": json.dumps({"answers": [[now_ms, HOSTILE]]}), "owner": HOSTILE, "why": HOSTILE}
        await redis.hset(keys.lane(HOST), mapping={**state, "shut_until_ms": now_ms + 60_000})  # type: ignore[misc]
        await redis.zadd(keys.ATTENTION, {HOSTILE: now_ms})
        texts = [field.name for field in msgspec.structs.fields(Registration) if field.type is str]
        registration = Registration(**dict.fromkeys(texts, HOSTILE))  # type: ignore[arg-type]
        report = WorkerReport(
            registration=registration, policy_refused=HOSTILE, lanes={HOST: LaneReport(1, HOSTILE, now_ms)}
        )
        await redis.zadd(keys.WORKERS, {HOSTILE: now_ms})
        await redis.set(keys.worker(HOSTILE), msgspec.json.encode(report), px=60_000)
        await redis.hset(keys.POLICY, HOSTILE, json.dumps({"burst": 2, HOSTILE: HOSTILE}))  # type: ignore[misc]
        await redis.hset(keys.batch(BATCH), mapping={"total": 1, "sealed": 1, "failed": 1, "done": 1})  # type: ignore[misc]
        await redis.zadd(keys.BATCHES, {BATCH: 1, HOSTILE: 2})
        await redis.xadd(keys.results(BATCH), {"r": encode(RESULT)})
        await redis.xadd(
            keys.DEAD, dict.fromkeys(("door", "reason", "note", "lane", "id", "element"), HOSTILE), id="1-1"
        )
        for key in (keys.batch(BATCH), keys.results(BATCH)):
            await redis.pexpire(key, 60_000)


async def clear(redis_url: str) -> None:
    """Remove keys that no program of the fleet would have written."""
    async with connect(redis_url) as redis:
        await redis.delete(keys.worker(HOSTILE))
        await redis.zrem(keys.ATTENTION, HOSTILE)


def test_no_command_prints_an_unsafe_character_that_redis_holds(redis_url: str) -> None:
    """The commands print text, tables, JSON and errors, with and without secrets."""
    asyncio.run(fill(redis_url))
    reading = [
        *(
            ["status"],
            ["batches"],
            ["results", BATCH],
            ["explain", HOST],
            ["explain", RESULT.id],
            ["dead", "list"],
        ),
        *(["dead", "show", "1-1"], ["policy", "show"], ["policy", "show", HOST], ["pause"]),
    ]
    revealing = [["results", BATCH], ["explain", RESULT.id], ["dead", "list"], ["dead", "show", "1-1"]]
    commands = [*reading, *([*words, "--json"] for words in reading)]
    commands += [[*words, "--reveal", *json_too] for words in revealing for json_too in ([], ["--json"])]
    commands += [["pause", HOST], ["resume", HOST], ["drain", f"x{HOSTILE}"], ["undrain", "x"]]
    commands += [["policy", "set", HOST, "rate_per_s=x\x9b"], ["results", HOSTILE], ["explain", HOSTILE]]
    commands += [["export", BATCH, "-"], ["export", BATCH, "-", "--reveal"]]
    commands += [["results", BATCH, "--outcome", HOSTILE], [HOSTILE], ["status", f"--{HOSTILE}"]]
    commander = Commands(redis_url)
    outputs = {" ".join(words): commander.terminal_output(*words) for words in commands}
    asyncio.run(clear(redis_url))

    assert {words: text for words, text in outputs.items() if UNSAFE.search(text.replace("\n", ""))} == {}
    assert "\\u202e" in outputs["status"]
    assert json.loads(outputs[f"results {BATCH} --reveal --json"].splitlines()[0]) == msgspec.to_builtins(
        RESULT
    )
