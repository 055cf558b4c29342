"""The operations on batches: progress, results in pages or live, cancellation."""

import asyncio
import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from redis.asyncio import Redis

from fetchfleet import Fleet, FleetUnreachableError
from fetchfleet.jobs import keys
from fetchfleet.jobs.client.batch import Results
from fetchfleet.jobs.contract.safe_text import UNSAFE
from tests.support.console import BEARER, TOKEN, console
from tests.support.lanes import BATCH_ID, LaneHold, ask, stored, url
from tests.support.log_lines import capture_logs
from tests.support.own_redis import own_redis
from tests.support.waiting import wait_until

RESULTS = f"/v1/batches/{BATCH_ID}/results"
CONTROLS = "\x7f\x9b31m\u202e"
"""Characters that control a terminal, or reorder text."""


async def submit(fleet: Fleet, count: int) -> None:
    """Submit a batch."""
    await fleet.submit([url(f"/{place}?token=secret") for place in range(count)], batch_id=BATCH_ID)


async def finish(redis: Redis, count: int, hold: LaneHold | None = None) -> LaneHold:
    """Store that many fetches."""
    hold = hold or await LaneHold.begin(redis)
    await hold.settle(*(stored(element) for element in (await hold.claim(count)).serialized))
    return hold


def results_in(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the results of a response."""
    assert "application/x-ndjson" == response.headers["content-type"]
    return [json.loads(line) for line in response.text.splitlines()]


async def test_the_progress_of_a_batch(local: httpx.AsyncClient, fleet: Fleet, redis: Redis) -> None:
    """In the list and alone."""
    await submit(fleet, 3)
    await finish(redis, 2)
    listed = (await local.get("/v1/batches")).json()["batches"]
    alone = (await local.get(f"/v1/batches/{BATCH_ID}")).json()["batch"]

    assert [BATCH_ID] == [batch["id"] for batch in listed]
    assert (2, 1, "running") == (alone["done"], alone["left"], alone["state"])
    assert {**listed[0], "eta_s": None, "rate_per_s": None} == {**alone, "eta_s": None, "rate_per_s": None}


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("batch", ["fedcba9876543210", "x", "0" * 17, "%00", "FEDCBA9876543210"])
async def test_an_unknown_batch_gets_404(local: httpx.AsyncClient, method: str, batch: str) -> None:
    """For its progress, its results and its cancellation."""
    responses = [await local.request(method, f"/v1/batches/{batch}")]
    if method == "GET":
        responses.append(await local.get(f"/v1/batches/{batch}/results"))

    assert {404} == {response.status_code for response in responses}


async def test_results_are_read_in_pages(local: httpx.AsyncClient, fleet: Fleet, redis: Redis) -> None:
    """Each has its position, from which the next page continues. The secrets in URLs are masked."""
    await submit(fleet, 5)
    await finish(redis, 5)
    read: list[dict[str, Any]] = []
    after = "0"
    while page := results_in(await local.get(RESULTS, params={"after": after, "limit": 2})):
        assert len(page) <= 2
        read += page
        after = page[-1]["position"]

    assert [f"{BATCH_ID}-{place:08x}" for place in range(5)] == sorted(result["id"] for result in read)
    assert {(True, "stored")} == {(result["redacted"], result["outcome"]) for result in read}
    assert "secret" not in str(read)
    assert read == results_in(await local.get(RESULTS))


async def test_secrets_are_revealed_on_request_only(
    local: httpx.AsyncClient, fleet: Fleet, redis_url: str, redis: Redis
) -> None:
    """Never by a server with --read-only."""
    await submit(fleet, 1)
    await finish(redis, 1)
    [revealed] = results_in(await local.get(RESULTS, params={"reveal": "true"}))
    async with console(redis_url, token=TOKEN, read_only=True) as client:
        refused = await client.get(RESULTS, params={"reveal": "true"}, headers=BEARER)

    assert revealed["url"].endswith("?token=secret")
    assert "redacted" not in revealed
    assert 403 == refused.status_code


async def test_results_are_followed_until_the_batch_has_ended(
    local: httpx.AsyncClient, fleet: Fleet, redis: Redis
) -> None:
    """Those that are written while the response is open are part of it."""
    await submit(fleet, 3)
    hold = await finish(redis, 1)
    following = asyncio.create_task(local.get(RESULTS, params={"wait": "60"}))
    await finish(redis, 2, hold)
    response = await following

    assert 3 == len(results_in(response))


async def test_following_ends_when_the_time_is_over(
    local: httpx.AsyncClient, fleet: Fleet, redis: Redis
) -> None:
    """With the results so far, or none."""
    await submit(fleet, 2)
    none = await local.get(RESULTS, params={"wait": "0.05"})
    await finish(redis, 1)
    some = await local.get(RESULTS, params={"wait": "0.05"})
    enough = await local.get(RESULTS, params={"wait": "60", "limit": "1"})

    assert [0, 1, 1] == [len(results_in(response)) for response in (none, some, enough)]


async def test_following_ends_when_the_server_stops(
    local: httpx.AsyncClient, fleet: Fleet, redis: Redis
) -> None:
    """The body is complete, and a reader continues with the next server."""
    await submit(fleet, 2)
    await finish(redis, 1)
    services = local._transport.app.state.services  # type: ignore[attr-defined]
    asyncio.get_running_loop().call_later(0.05, services.stopping.set)
    response = await local.get(RESULTS, params={"wait": "60"})

    assert 1 == len(results_in(response))


async def test_damaged_results_are_skipped(local: httpx.AsyncClient, fleet: Fleet, redis: Redis) -> None:
    """Redis is not trusted: a record that is not a result of the batch is left out."""
    await submit(fleet, 2)
    await finish(redis, 1)
    for value in (b"x", b"[]", b'{"id":"fedcba9876543210-00000000"}', b"\xff" * 40):
        await ask(redis, "XADD", f"ff:batch:{BATCH_ID}:results", "*", "r", value)
    await ask(redis, "XADD", f"ff:batch:{BATCH_ID}:results", "*", "other", "field")
    response = await local.get(RESULTS)

    assert 1 == len(results_in(response))


async def test_every_answer_is_safe_for_a_terminal(
    local: httpx.AsyncClient, fleet: Fleet, redis: Redis
) -> None:
    """Operators read answers with curl: results, dead letters and errors have the texts of other programs."""
    await submit(fleet, 1)
    result = {"id": f"{BATCH_ID}-00000000", "url": "http://a/", "outcome": "stored", "worker": CONTROLS}
    await redis.xadd(f"ff:batch:{BATCH_ID}:results", {"r": json.dumps(result, ensure_ascii=False)})
    await redis.xadd(keys.DEAD, {"door": CONTROLS, "reason": CONTROLS, "note": CONTROLS, "element": "{"})
    answers = [await local.get(path) for path in (RESULTS, "/v1/dead", f"/v1/dead/{quote(CONTROLS)}")]
    await redis.delete(keys.results(BATCH_ID))

    assert [200, 200, 404] == [answer.status_code for answer in answers]
    assert not [answer.text for answer in answers if UNSAFE.search(answer.text.rstrip("\n"))]
    assert CONTROLS == results_in(answers[0])[0]["worker"]


async def test_a_result_that_is_nested_too_deeply_hides_no_other(
    local: httpx.AsyncClient, fleet: Fleet, redis: Redis
) -> None:
    """Its `meta` is hidden, or whole if this Python can read it. A fetch has 100 levels at most."""
    await submit(fleet, 2)
    for place in range(2):
        head = f'{{"id":"{BATCH_ID}-{place:08x}","url":"http://a/","outcome":"stored","worker":"w"'
        text = f'{head},"meta":{"[" * 900}{"]" * 900}}}'
        await redis.xadd(f"ff:batch:{BATCH_ID}:results", {"r": text if place == 0 else head + "}"})

    answer = await local.get(RESULTS)
    await redis.delete(keys.results(BATCH_ID))

    deep, other = (result.get("meta") for result in results_in(answer))
    assert deep == "***" or str(deep).count("[") == 900
    assert other is None


@pytest.mark.parametrize(
    "query",
    [
        "after=x",
        "after=1-2-3",
        "after=99999999999999999999",
        "limit=0",
        "limit=x",
        "wait=-1",
        "wait=nan",
        "wait=inf",
        "wait=1e9",
        "reveal=maybe",
        "unknown=1",
        "limit=1&limit=2",
        "after=%00",
    ],
)
async def test_an_invalid_query_gets_400_and_the_parameter(
    local: httpx.AsyncClient, fleet: Fleet, query: str
) -> None:
    """As problem+json."""
    await submit(fleet, 1)
    response = await local.get(f"{RESULTS}?{query}")

    assert (400, "application/problem+json") == (response.status_code, response.headers["content-type"])
    assert query.partition("=")[0] in response.json()["detail"] or "once" in response.json()["detail"]


async def test_a_batch_is_cancelled_once(local: httpx.AsyncClient, fleet: Fleet, redis: Redis) -> None:
    """A repeat has the same response."""
    await submit(fleet, 3)
    await finish(redis, 1)
    first = await local.delete(f"/v1/batches/{BATCH_ID}")
    second = await local.delete(f"/v1/batches/{BATCH_ID}")

    assert (200, BATCH_ID, False) == (first.status_code, first.json()["id"], first.json()["ended"])
    assert first.json() == second.json()


async def test_a_redis_that_does_not_answer_gets_503() -> None:
    """For every kind of operation, within the patience, and again 200 once it answers."""
    batch, host = f"/v1/batches/{BATCH_ID}", "/v1/hosts/a.example"
    paths = ["/v1/fleet", "/v1/workers", "/v1/batches", batch, RESULTS, "/v1/hosts", host]
    with own_redis() as server:
        await wait_until(server.responds, "Redis")
        async with console(server.url, redis_patience_s=0.0) as client:
            assert {200, 404} == {(await client.get(path)).status_code for path in paths}
            server.kill()
            responses = [await client.get(path) for path in paths]
            responses.append(await client.post("/v1/batches", json={"url": url("/")}))
            responses.append(await client.post(f"{host}/pause"))
            responses.append(await client.post("/v1/dead/purge", json={"all": True}))
            server.start()
            await wait_until(server.responds, "Redis")
            again = await client.get("/v1/fleet")

    assert {(503, "redis_unreachable")} == {(of.status_code, of.json()["reason"]) for of in responses}
    assert all(int(response.headers["retry-after"]) > 0 for response in responses)
    assert 200 == again.status_code


async def test_a_value_of_another_type_gets_503(local: httpx.AsyncClient, redis: Redis) -> None:
    """The response names the key."""
    await ask(redis, "SET", f"ff:batch:{BATCH_ID}", "x")
    responses = [
        await local.get(RESULTS),
        await local.delete(f"/v1/batches/{BATCH_ID}"),
        await local.post("/v1/batches", json={"fetches": [url("/")], "batch": BATCH_ID}),
    ]
    await ask(redis, "DEL", f"ff:batch:{BATCH_ID}")

    assert {503} == {response.status_code for response in responses}
    assert all(f"ff:batch:{BATCH_ID}" in response.json()["detail"] for response in responses)


async def test_a_response_that_redis_cuts_off_is_incomplete_and_no_bug(
    local: httpx.AsyncClient, fleet: Fleet, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection ends without the end of the body, and the log has the cause."""
    await submit(fleet, 1)
    await finish(redis, 1)
    page, pages = Results.page, []

    async def fail_later(results: Results) -> Any:
        pages.append(results)
        if len(pages) > 1:
            raise FleetUnreachableError("Redis has not answered for 5 s")
        return await page(results)

    monkeypatch.setattr(Results, "page", fail_later)
    with capture_logs() as captured, pytest.raises(RuntimeError):
        await local.get(RESULTS)

    assert [("console.redis", "Redis has not answered for 5 s")] == [
        (line["event"], line["message"]) for line in captured
    ]
