"""POST /v1/batches: messages and lines, checked as at every other door, enqueued once."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from fetchfleet import Fetch, Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.client import submit as submit_module
from fetchfleet.jobs.contract.fetch import MAX_FETCH_BYTES
from fetchfleet.jobs.contract.messages import MAX_INPUT_BYTES
from fetchfleet.worker.console import bodies
from tests.support.console import console
from tests.support.lanes import BATCH_ID, LANE, backlog, everything, paths, url, waiting
from tests.support.log_lines import capture_logs

NDJSON = {"Content-Type": "application/x-ndjson"}
JSON = {"Content-Type": "application/json"}
CHUNK = 3


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enqueue streams in chunks of few fetches."""
    monkeypatch.setattr(submit_module, "CHUNK_FETCHES", CHUNK)


def urls(count: int) -> list[str]:
    """Return that many URLs."""
    return [url(f"/{place}") for place in range(count)]


def lines(items: Iterable[Any]) -> bytes:
    """Return items as lines of JSON."""
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


async def post(client: httpx.AsyncClient, body: Any, **fields: str) -> httpx.Response:
    """Post a message."""
    return await client.post("/v1/batches", json=body, headers=fields)


@pytest.mark.parametrize(
    "message",
    [
        {"url": url("/0"), "v": 1},
        {"fetches": [url("/0")]},
        {"fetches": [{"url": url("/0"), "priority": "normal"}], "v": 1},
    ],
)
async def test_a_message_of_the_inbox_is_enqueued(
    local: httpx.AsyncClient, redis: Redis, message: dict[str, Any]
) -> None:
    """The response has the batch and the IDs of its fetches."""
    response = await post(local, message)
    batch = response.json()["batch"]

    assert 202 == response.status_code
    assert {"batch": batch, "count": 1, "ids": [f"{batch}-00000000"]} == response.json()
    assert f"/v1/batches/{batch}" == response.headers["location"]
    assert ["/0"] == paths(await waiting(redis))


async def test_a_submit_may_name_a_receiver(local: httpx.AsyncClient, redis: Redis) -> None:
    """The URL is in the query, or in the message, and is checked as that of a fetch."""
    notify = "https://app.example/hooks"
    in_message = await post(local, {"fetches": [url("/0")], "notify": notify})
    in_query = await local.post(f"/v1/batches?notify={notify}", content=url("/1"), headers=NDJSON)
    for response in (in_message, in_query):
        assert 202 == response.status_code
        batch = response.json()["batch"]
        assert notify.encode() == await redis.hget(keys.batch(batch), "notify")  # type: ignore[misc]
        detail = (await local.get(f"/v1/batches/{batch}")).json()
        assert (notify, None) == (detail["notify"], detail["webhook"])
        assert notify in (await local.get(f"/batches/{batch}", headers={"Accept": "text/html"})).text

    both = await local.post(f"/v1/batches?notify={notify}", json={"fetches": [url("/0")], "notify": notify})
    invalid = await local.post("/v1/batches?notify=ftp://a/", content=url("/1"), headers=NDJSON)
    assert (422, 422) == (both.status_code, invalid.status_code)
    assert "notify: give it once" in both.text
    assert "notify: " in invalid.json()["detail"]


async def test_lines_are_enqueued_as_they_arrive(local: httpx.AsyncClient, redis: Redis) -> None:
    """Before the body is complete. Lines may be cut anywhere, blank, or plain URLs."""
    seen: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        text = b"\n" + lines({"url": of} for of in urls(7)) + url("/7").encode()
        for start in range(0, len(text), 11):
            yield text[start : start + 11]
            seen.append(len(await waiting(redis)))

    response = await local.post("/v1/batches", content=body(), headers=NDJSON)

    assert (202, 8) == (response.status_code, response.json()["count"])
    assert [f"/{place}" for place in range(8)] == paths(await waiting(redis))
    assert [f"{place:08x}" for place in range(8)] == [of[17:] for of in response.json()["ids"]]
    assert {0, 3, 6} == set(seen)


async def test_the_ids_of_a_large_batch_are_complete(
    local: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are written in parts; a fetch whose key is taken has the ID of the earlier fetch."""
    monkeypatch.setattr("fetchfleet.worker.console.api.submit.IDS_AT_ONCE", 2)
    first = await post(local, {"url": url("/k"), "key": "order 7"})
    items = [{"url": of} for of in urls(4)] + [{"url": url("/k"), "key": "order 7"}]
    response = await local.post("/v1/batches", content=lines(items), headers=NDJSON)
    batch = response.json()["batch"]

    assert [f"{batch}-{place:08x}" for place in range(4)] + first.json()["ids"] == response.json()["ids"]


async def test_no_fetch_is_a_batch_that_has_ended(local: httpx.AsyncClient) -> None:
    """As for every producer."""
    for response in (
        await post(local, {"fetches": []}),
        await local.post("/v1/batches", content=b"\n\n", headers=NDJSON),
    ):
        shown = await local.get(response.headers["location"])

        assert ({"batch": response.json()["batch"], "count": 0, "ids": []}, "ended") == (
            response.json(),
            shown.json()["batch"]["state"],
        )


@pytest.mark.parametrize("is_stream", [False, True])
async def test_concurrent_repeats_with_a_key_enqueue_once(
    local: httpx.AsyncClient, redis: Redis, *, is_stream: bool
) -> None:
    """Ten at once, and one later: all responses are the same."""
    items = [{"url": of} for of in urls(10)]
    content, media_type = json.dumps({"fetches": items}).encode(), JSON
    if is_stream:
        content, media_type = lines(items), NDJSON
    fields = {"Idempotency-Key": "nightly 2024-01-02", **media_type}

    async def send() -> httpx.Response:
        return await local.post("/v1/batches", content=content, headers=fields)

    responses = [*await asyncio.gather(*(send() for _ in range(10))), await send()]

    assert {202} == {response.status_code for response in responses}
    assert 1 == len({response.content for response in responses})
    assert [f"/{place}" for place in range(10)] == paths(await waiting(redis))


async def test_a_key_with_another_body_gets_422(local: httpx.AsyncClient, redis: Redis) -> None:
    """No fetch of it is enqueued. A batch ID with other fetches gets 409."""
    await post(local, {"fetches": urls(2)}, **{"Idempotency-Key": "k"})
    await post(local, {"fetches": urls(2), "batch": BATCH_ID})
    before = await everything(redis)
    other = await post(local, {"fetches": urls(3)}, **{"Idempotency-Key": "k"})
    exists = await post(local, {"fetches": urls(3), "batch": BATCH_ID})

    assert (422, "batch_exists") == (other.status_code, other.json()["reason"])
    assert (409, "batch_exists") == (exists.status_code, exists.json()["reason"])
    assert before == await everything(redis)


async def test_a_cancelled_batch_accepts_nothing(local: httpx.AsyncClient) -> None:
    """A repeat of its submit gets 409."""
    submitted = await post(local, {"url": url("/0")}, **{"Idempotency-Key": "k"})
    await local.delete(submitted.headers["location"])
    response = await post(local, {"url": url("/0")}, **{"Idempotency-Key": "k"})

    assert (409, "batch_cancelled") == (response.status_code, response.json()["reason"])


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"url": "ftp://a.example/"}, 422, "url: "),
        ({"fetches": [url("/0"), {"url": url("/1"), "headers": {"Host": "x"}}]}, 422, "item 1: headers: "),
        ({"fetches": [url("/0"), 7]}, 422, "item 1: "),
        ({"fetches": url("/0")}, 422, "fetches"),
        ({"fetches": [], "batch": "X"}, 422, "batch: "),
        ({"fetches": [], "owner": "x"}, 422, "owner"),
        ({"url": url("/0"), "v": 3}, 422, "v: 3 is newer"),
        (
            {"fetches": [{"url": url("/0"), "dest": "a"}, {"url": url("/1"), "dest": "a"}]},
            422,
            "item 1: dest: ",
        ),
        ([url("/0")], 422, "must be an object"),
        (url("/0"), 422, "must be an object"),
        (7, 422, "must be an object"),
    ],
)
async def test_an_invalid_message_gets_422_and_the_field(
    local: httpx.AsyncClient, redis: Redis, body: Any, status: int, detail: str
) -> None:
    """As problem+json. Nothing is enqueued."""
    response = await post(local, body)

    assert (status, "application/problem+json") == (response.status_code, response.headers["content-type"])
    assert detail in response.json()["detail"]
    assert 0 == await redis.dbsize()


@pytest.mark.parametrize(
    ("content", "status"),
    [
        *(
            (content, 400)
            for content in (b"", b" ", b"{", b"x", b'{"url":1', b'{"url":"http://a/"}}', b"{'a':1}")
        ),
        *(
            (content, 400)
            for content in (b'{"url":"\xff"}', b'{"fetches":[{"url":}]}', b'\xef\xbb\xbf{"url":1}')
        ),
        *((content, 400) for content in (b'{"url":NaN}', b"[1", b"http://a.example/")),
        *((content, 422) for content in (b"{}", b"[]", b"null", b'{"url":1}', b' {"fetches":[{"url":""}]} ')),
        (b'{"url":"http://a/","meta":' + b"[" * 100_000, 422),
        (b'{"url":"http://a/","meta":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 422),
    ],
)
async def test_a_body_that_is_not_json_gets_400(
    local: httpx.AsyncClient, redis: Redis, content: bytes, status: int
) -> None:
    """JSON that is not a message gets 422, and so does a body that is nested too deeply to be read."""
    response = await local.post("/v1/batches", content=content, headers=JSON)
    problem = response.json()

    assert (status, "application/problem+json") == (response.status_code, response.headers["content-type"])
    assert (status, "invalid") == (problem["status"], problem["reason"])
    assert problem["detail"].startswith("the body is not JSON: ") is (status == 400)
    assert 0 == await redis.dbsize()


@pytest.mark.parametrize(
    ("content", "status", "detail"),
    [
        (b'{"url":"http://a.example/"}\n{"url":1}\n', 422, "line 2: "),
        (b"\nhttp://a.example/\nnot a url\n", 422, "line 3: url: "),
        (b'{"url":"http://a.example/\xff"}\n', 422, "line 1: is not UTF-8"),
        (b'{"url":"http://a.example/"', 422, "line 1: "),
        (b"[" * 100_000, 422, "line 1: "),
        (b'{"meta":' + b"[" * 100_000, 422, "line 1: "),
        (b"x" * (MAX_FETCH_BYTES + 4096), 413, "line 1 has more than"),
        (b"\x00\x01\x02", 422, "line 1: "),
    ],
)
async def test_a_bad_line_is_named(
    local: httpx.AsyncClient, redis: Redis, content: bytes, status: int, detail: str
) -> None:
    """Before the first full chunk, nothing is enqueued."""
    response = await local.post("/v1/batches", content=content, headers=NDJSON)

    assert status == response.status_code
    assert detail in response.json()["detail"]
    assert 0 == await redis.dbsize()


async def test_a_bad_line_after_a_chunk_reports_the_rest(local: httpx.AsyncClient, redis: Redis) -> None:
    """The corrected body under the same key adds what is missing."""
    good = [{"url": of} for of in urls(5)]
    bad = [*good[:4], {"url": "x"}]
    fields = {**NDJSON, "Idempotency-Key": "k"}
    refused = await local.post("/v1/batches", content=lines(bad), headers=fields)
    problem = refused.json()
    accepted = await local.post("/v1/batches", content=lines(good), headers=fields)

    assert (422, CHUNK) == (refused.status_code, problem["enqueued"])
    assert "line 5: " in problem["detail"]
    assert (202, problem["batch"]) == (accepted.status_code, accepted.json()["batch"])
    assert [f"/{place}" for place in range(5)] == paths(await waiting(redis))


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": ""}, 415),
        ({**JSON, "Content-Encoding": "gzip"}, 415),
        ({**JSON, "Idempotency-Key": ""}, 422),
        ({**JSON, "Idempotency-Key": "x" * 256}, 422),
        ({**NDJSON, "Idempotency-Key": "\t"}, 422),
    ],
)
async def test_other_requests_are_refused(
    local: httpx.AsyncClient, fields: dict[str, str], status: int
) -> None:
    """Before the body is read as fetches."""
    response = await local.post("/v1/batches", content=b'{"url":"http://a.example/"}', headers=fields)

    assert status == response.status_code


async def test_a_key_and_a_batch_exclude_each_other(local: httpx.AsyncClient) -> None:
    """Both would name the batch."""
    response = await post(local, {"fetches": [], "batch": BATCH_ID}, **{"Idempotency-Key": "k"})

    assert (422, True) == (response.status_code, "batch: leave it out" in response.json()["detail"])


async def test_a_message_has_a_size_limit(local: httpx.AsyncClient) -> None:
    """It is that of the inbox. The rest of the body is not read."""
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(64):
            read += 1
            yield b" " * (1 << 20)

    response = await local.post("/v1/batches", content=body(), headers=JSON)

    assert 413 == response.status_code
    assert read <= (MAX_INPUT_BYTES >> 20) + 2


async def test_a_full_fleet_gets_429_and_the_time_to_wait(redis_url: str, redis: Redis) -> None:
    """A message completely or not at all. A stream may be in part; its repeat adds the rest."""
    async with console(redis_url, max_backlog=4) as client:
        await post(client, {"url": url("/0")})
        message = await post(client, {"fetches": urls(4)})
        fields = {**NDJSON, "Idempotency-Key": "k"}
        content = lines({"url": of} for of in urls(5))
        stream = await client.post("/v1/batches", content=content, headers=fields)

    assert (429, "fleet_full") == (message.status_code, message.json()["reason"])
    assert int(message.headers["retry-after"]) > 0
    assert (429, CHUNK) == (stream.status_code, stream.json()["enqueued"])
    async with console(redis_url) as client:
        repeated = await client.post("/v1/batches", content=content, headers=fields)
    assert (202, stream.json()["batch"]) == (repeated.status_code, repeated.json()["batch"])
    assert 6 == await backlog(redis)


async def test_a_redis_without_memory_gets_503(local: httpx.AsyncClient, redis: Redis) -> None:
    """With Retry-After. Nothing is enqueued."""
    await redis.config_set("maxmemory", 1)
    try:
        response = await post(local, {"fetches": urls(5)})
    finally:
        await redis.config_set("maxmemory", 0)

    assert (503, "redis_full") == (response.status_code, response.json()["reason"])
    assert int(response.headers["retry-after"]) > 0
    assert [] == await waiting(redis)


async def test_a_slow_client_ends_with_408(
    local: httpx.AsyncClient, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time counts from the last piece of the body."""
    monkeypatch.setattr(bodies, "PIECE_TIMEOUT_S", 0.05)

    async def body() -> AsyncIterator[bytes]:
        yield lines([{"url": url("/0")}])
        await asyncio.Event().wait()

    response = await local.post("/v1/batches", content=body(), headers=NDJSON)

    assert 408 == response.status_code
    assert [] == await waiting(redis)


async def test_the_doors_agree(local: httpx.AsyncClient, fleet: Fleet, redis: Redis) -> None:
    """Fetches by the API, as message and as lines, are those of the Python client, byte by byte."""
    fetch: dict[str, Any] = {"url": "HTTP://A.example:80/%7e", "method": "post", "body": "x", "meta": [1]}
    await fleet.submit([Fetch(**fetch)], batch_id=BATCH_ID)
    [element] = await waiting(redis)
    for content, media_type in ((json.dumps(fetch).encode(), JSON), (lines([fetch]), NDJSON)):
        await local.post("/v1/batches", content=content, headers=media_type)
    [_, *others] = await waiting(redis, lane=LANE)

    assert 2 == len(others)
    assert [element[38:]] * 2 == [other[38:] for other in others]


async def test_a_submit_is_logged_with_the_caller(local: httpx.AsyncClient) -> None:
    """The batch and the number of fetches, and no URL."""
    with capture_logs() as captured:
        batch = (await post(local, {"fetches": [url("/secret?token=x")]})).json()["batch"]
        await post(local, {"url": "x"})

    assert [
        {
            "event": "console.action",
            "log_level": "info",
            "worker": "console",
            "action": "submit",
            "target": batch,
            "by": "local",
            "peer": "192.0.2.7",
            "result": "1 fetches",
        }
    ] == captured


async def test_the_problem_of_the_docs_is_the_response(local: httpx.AsyncClient) -> None:
    """Word by word."""
    page = (Path(__file__).parents[3] / "docs" / "http_api.md").read_text()
    [example] = re.findall(r'^({"title".*})$', page, re.MULTILINE)
    response = await post(local, {"fetches": [url("/0"), "ftp://a.example/"]})

    assert json.loads(example) == response.json()


async def test_a_submit_that_the_end_of_the_server_cuts_off_is_logged(local: httpx.AsyncClient) -> None:
    """Some of its fetches may be enqueued."""
    begun = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"https://a.example/\n"
        begun.set()
        await asyncio.Event().wait()

    with capture_logs() as logged:
        sending = asyncio.create_task(local.post("/v1/batches", content=body(), headers=NDJSON))
        await begun.wait()
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending

    [line] = logged
    assert ("console.action", "submit", "local") == (line["event"], line["action"], line["by"])
    assert "interrupted: it may be done in part" == line["result"]
