"""Commands show no secret of a fetch without `--reveal`."""

import asyncio
import json
import re
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from fetchfleet import Fetch, Fleet, InvalidFetchError, Outcome, Reason, Result
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import serialize_new_entry, with_deadline
from fetchfleet.jobs.contract.fetch import decode_fetch, encode
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.cli.app import app
from fetchfleet.worker.errors import CommandError

CANARY = re.compile(r"k4n4ry[a-z]+")
PARENT = "c4a4c4a4c4a4c4a4"
HOST = "secrets.example"
ENDED = "0123456789abcdef-00000000"
FIELDS: dict[str, Any] = {
    "url": f"http://{HOST}/a?token=k4n4ryquery&q='k4n4ryquoted&k4n4rybare",
    "method": "PUT",
    "headers": {
        "Authorization": "Bearer k4n4ryauthorization",
        "Cookie": "session=k4n4rycookie",
        "X-Whatever": "k4n4ryheader",
        "Accept": "text/csv",
    },
    "body": "k4n4rybody",
    "traceparent": f"00-4bf92f3577b34da6a3ce929d0e0e4736-{PARENT}-01",
    "tracestate": "vendor=k4n4rytracestate",
    "meta": {"order": 7, "password": "k4n4rymeta", "see": ["https://x/?page=2&sig=k4n4rylink"]},
}
NOTE = f"could not send http://{HOST}/?token=k4n4rynote"
RESULT = Result(
    id=ENDED,
    url=FIELDS["url"],
    final_url=f"http://{HOST}/b?access_token=***&page=k4n4ryfinal",
    outcome=Outcome.FAILED,
    reason=Reason.HTTP_STATUS,
    status=500,
    worker="w",
    meta=FIELDS["meta"],
)
NO_SECRET_BY_NAME = {"k4n4ryquoted", "k4n4rybare", "k4n4ryfinal"}
"""Parts of queries without the name of a secret, by which a consumer finds the fetch of a result."""

BAD_LINES = "\n".join(
    [
        json.dumps({**FIELDS, "headers": {"Authorization": "k4n4rybroken\n"}}),
        json.dumps({**FIELDS, "nonsense": "k4n4rynonsense"}),
        json.dumps({"url": "http://k4n4ryuser:k4n4rypassword@h.example/"}),
        "http://h.example:x/?token=k4n4ryport",
        '{"url": "http://h.example/?k4n4rytorn',
    ]
)


def canaries(text: str) -> set[str]:
    """Return the canaries in the text."""
    return set(CANARY.findall(text.lower())) | ({PARENT} if PARENT in text else set())


async def filled(redis_url: str) -> str:
    """Put a waiting fetch, a result and two dead letters into Redis; return the id of the fetch."""
    async with Fleet(redis_url) as fleet, connect(redis_url) as redis:
        fetch = Fetch(**FIELDS)
        batch = await fleet.submit([fetch])
        ended = keys.batch(ENDED[:16])
        await redis.hset(ended, mapping={"total": 1, "sealed": 1, "failed": 1, "done": 1, "created_ms": 1})  # type: ignore[misc]
        await redis.zadd(keys.BATCHES, {ENDED[:16]: 1})
        await redis.xadd(keys.results(ENDED[:16]), {"r": encode(RESULT)})
        element = with_deadline(serialize_new_entry(ENDED, fetch), 0).decode()
        letter = {"door": "lane", "reason": "http_status", "note": NOTE, "lane": HOST, "id": ENDED}
        letter["element"] = element
        await redis.xadd(keys.DEAD, letter, id="1-1")  # type: ignore[arg-type]
        letter = {"door": "inbox", "reason": "invalid", "note": NOTE, "element": BAD_LINES}
        await redis.xadd(keys.DEAD, letter, id="1-2")  # type: ignore[arg-type]
        for key in (ended, keys.results(ENDED[:16])):
            await redis.pexpire(key, keys.RESULTS_TTL_MS)
        [fetch_id] = batch.ids
        return fetch_id


def ask(redis_url: str, command: list[str]) -> str:
    """Run the command in this process; return all of its output."""
    runner = CliRunner(env={"FETCHFLEET_REDIS_URL": redis_url, "COLUMNS": "500"})
    ended = runner.invoke(app, command, input=BAD_LINES)
    assert ended.exception is None or isinstance(ended.exception, CommandError | SystemExit), ended.exception
    return f"{ended.output}\n{ended.exception or ''}"


def test_no_command_shows_a_secret_without_reveal(redis_url: str) -> None:
    """Headers, bodies, trace context, queries and secrets in meta are masked; the rest stays readable."""
    waiting = asyncio.run(filled(redis_url))
    plain = [
        *(["status"], ["batches"], ["results", ENDED[:16]], ["explain", HOST], ["explain", waiting]),
        *(["explain", ENDED], ["dead", "list"], ["dead", "show", "1-1"], ["dead", "show", "1-2"]),
        *(["policy", "show"], ["policy", "show", HOST]),
    ]
    commands = [*plain, *([*command, "--json"] for command in plain), ["run", "-"], ["submit", "-"]]
    last = [
        ["pause", HOST],
        ["resume", HOST],
        ["reset", HOST],
        ["dead", "retry", "--all"],
        ["dead", "purge", "--all"],
    ]
    last += [["export", ENDED[:16], "-"], ["cancel", ENDED[:16]]]
    revealing = [
        ["dead", "show", "1-1", "--reveal"],
        ["dead", "list", "--json", "--reveal"],
        ["results", ENDED[:16], "--json", "--reveal"],
        ["results", ENDED[:16], "--reveal"],
        ["explain", ENDED, "--json", "--reveal"],
    ]
    outputs = {" ".join(command): ask(redis_url, command) for command in [*commands, *revealing, *last]}
    letter = json.loads(outputs["dead show 1-1 --json"])
    result = json.loads(outputs[f"results {ENDED[:16]} --json"].splitlines()[0])
    whole = msgspec.json.decode(outputs[f"results {ENDED[:16]} --json --reveal"].splitlines()[0], type=Result)

    shown = {name: canaries(outputs[name]) for name in map(" ".join, [*commands, *last])}
    assert shown.pop(f"results {ENDED[:16]} --json") == NO_SECRET_BY_NAME
    assert shown.pop(f"export {ENDED[:16]} -") == NO_SECRET_BY_NAME
    assert {name: found for name, found in shown.items() if found} == {}
    assert letter["fetch"]["headers"] == {
        "Authorization": "***",
        "Cookie": "***",
        "X-Whatever": "***",
        "Accept": "text/csv",
    }
    assert letter["fetch"]["meta"] == {"order": 7, "password": "***", "see": ["https://x/?page=2&sig=***"]}
    assert letter["redacted"] is result["redacted"] is True
    with pytest.raises(InvalidFetchError, match="redacted"):
        decode_fetch(json.dumps(letter["fetch"]))
    assert result["url"] == f"http://{HOST}/a?token=***&q='k4n4ryquoted&k4n4rybare"
    assert result["final_url"] == RESULT.final_url
    assert "k4n4ryauthorization" in outputs["dead show 1-1 --reveal"]
    assert "k4n4rybody" in outputs["dead list --json --reveal"]
    assert "k4n4rybare" in outputs[f"results {ENDED[:16]} --reveal"]
    assert "k4n4ryquery" in outputs[f"explain {ENDED} --json --reveal"]
    assert whole == RESULT
