"""The operations on hosts, policy keys and dead letters, and the log of changes."""

from collections.abc import Sequence

import httpx
import pytest
from redis.asyncio import Redis

from fetchfleet import DeadLetterFilter, Fleet
from fetchfleet.worker.inspect.views.hosts import host_detail
from fetchfleet.worker.top.picture import read_picture
from fetchfleet.worker.top.texts import problems
from tests.support.console import BEARER, TOKEN, console
from tests.support.lanes import BATCH_ID, LANE, everything, fail_batch, url
from tests.support.log_lines import capture_logs

OTHER = "b.example"
HOST = f"/v1/hosts/{LANE}"


async def positions(fleet: Fleet) -> list[str]:
    """Return the positions of all dead letters."""
    return [letter.position async for letter in fleet.dead.iter(DeadLetterFilter())]


async def test_a_host_is_paused_and_resumed(local: httpx.AsyncClient, fleet: Fleet) -> None:
    """In any form of its name. The list and the detail of hosts show it."""
    await fleet.submit([url("/0")])
    paused = await local.post(f"/v1/hosts/{LANE.upper()}:443/pause")
    listed = (await local.get("/v1/hosts", params={"text": "EXAMPLE"})).json()
    detail = (await local.get(HOST)).json()
    resumed = await local.post(f"{HOST}/resume")

    assert (200, LANE, True) == (paused.status_code, paused.json()["name"], paused.json()["paused"])
    assert [LANE] == [host["host"] for host in listed["hosts"]]
    assert (LANE, "paused") == (detail["lane"]["lane"], detail["lane"]["state"])
    assert (200, False) == (resumed.status_code, resumed.json()["paused"])


async def test_a_pause_is_listed_although_nothing_waits_for_the_host(
    local: httpx.AsyncClient, fleet: Fleet, redis: Redis
) -> None:
    """A pause of a pattern is listed too. The response says that no fetch was sent to a mistyped name."""
    await fleet.submit([url("/0")])
    mistyped = (await local.post("/v1/hosts/a.exampel/pause")).json()
    await local.post("/v1/hosts/*.cdn.net/pause")
    page = (await local.get("/v1/hosts", params={"state": "paused"})).json()
    front, top = (await local.get("/")).text, await read_picture(redis)
    pattern = await host_detail(redis, "*.cdn.net")
    known = (await local.post(f"{HOST}/pause")).json()
    for name in ("a.exampel", "*.cdn.net", LANE):
        await local.post(f"/v1/hosts/{name}/resume")

    assert (False, [LANE]) == (mistyped["known"], mistyped["similar"])
    assert (True, []) == (known["known"], known["similar"])
    listed = [(host["host"], host["state"], host["waiting"], host["in_flight"]) for host in page["hosts"]]
    assert [("*.cdn.net", "paused", 0, 0), ("a.exampel", "paused", 0, 0)] == listed
    assert (2, 2, 1) == (page["matching"], page["states"]["paused"], page["lanes_in_all"])
    assert "2 hosts are paused" in front
    assert any("2 hosts are paused" in line.plain for line in problems(top))
    assert "paused" == pattern.lane.state


async def test_a_host_below_a_wider_pause_is_resumed_as_an_exception(local: httpx.AsyncClient) -> None:
    """Only if that is requested."""
    await local.post("/v1/hosts/default/pause")
    refused = await local.post(f"{HOST}/resume")
    excepted = await local.post(f"{HOST}/resume", params={"excepted": "true"})
    again = await local.post("/v1/hosts/default/pause")
    await local.post("/v1/hosts/default/resume")

    assert (422, True) == (refused.status_code, "stays paused" in refused.json()["detail"])
    assert (200, False) == (excepted.status_code, excepted.json()["paused"])
    assert [LANE] == again.json()["not_stopped"]


async def test_policy_keys_are_set_and_removed(local: httpx.AsyncClient) -> None:
    """Null removes a key."""
    changed = await local.put(f"{HOST}/policy", json={"rate_per_s": 5, "concurrency": 2})
    removed = await local.put(f"{HOST}/policy", json={"rate_per_s": None})
    detail = (await local.get(HOST)).json()
    limits = {limit["key"]: (limit["value"], limit["source"]) for limit in detail["limits"]}

    assert {"rate_per_s": 5, "concurrency": 2} == changed.json()["keys"]
    assert {"concurrency": 2} == removed.json()["keys"]
    assert (2, "override") == limits["concurrency"]
    await local.put(f"{HOST}/policy", json={"concurrency": None})


@pytest.mark.parametrize(
    ("keys", "status"),
    [
        ({"rate_per_s": -1}, 422),
        ({"nothing": 1}, 422),
        ({"verify": False}, 422),
        ({"ca_file": "/etc/shadow"}, 422),
        ({}, 422),
        ([1], 422),
    ],
)
async def test_invalid_policy_keys_change_nothing(
    local: httpx.AsyncClient, redis: Redis, keys: object, status: int
) -> None:
    """Keys of trust belong to the policy file."""
    response = await local.put(f"{HOST}/policy", json=keys)

    assert status == response.status_code
    assert {} == await everything(redis)


async def test_a_host_is_reset(local: httpx.AsyncClient, fleet: Fleet) -> None:
    """The response has the lanes; none if the host is unknown."""
    await fleet.submit([url("/0")])
    known, unknown = await local.post(f"{HOST}/reset"), await local.post("/v1/hosts/none.example/reset")

    assert [LANE] == [lane["lane"] for lane in known.json()["lanes"]]
    assert [] == unknown.json()["lanes"]


@pytest.mark.parametrize("host", ["%20", "a..b", "*", "%00", "*.1.2.3.4", "a" * 300, "[::1", "%ff"])
async def test_no_host_gets_422(local: httpx.AsyncClient, redis: Redis, host: str) -> None:
    """For every operation on it; nothing is changed."""
    responses = [await local.post(f"/v1/hosts/{host}/{action}") for action in ("pause", "resume", "reset")]
    responses.append(await local.get(f"/v1/hosts/{host}"))
    responses.append(await local.put(f"/v1/hosts/{host}/policy", json={"rate_per_s": 1}))

    assert {422} == {response.status_code for response in responses}
    assert {} == await everything(redis)


async def test_several_hosts_have_no_detail(local: httpx.AsyncClient) -> None:
    """A pattern can be paused, but not explained."""
    for name in ("default", "*.example"):
        assert 422 == (await local.get(f"/v1/hosts/{name}")).status_code


async def test_an_unknown_state_gets_422_with_the_states(local: httpx.AsyncClient) -> None:
    """An empty list would look as if no host was in that state."""
    refused = await local.get("/v1/hosts", params={"state": "colling"})

    assert 422 == refused.status_code
    assert "cooling" in refused.json()["detail"]


async def test_dead_letters_are_listed_without_secrets(
    local: httpx.AsyncClient, fleet: Fleet, redis: Redis
) -> None:
    """Newest first, in pages, by host, batch or reason."""
    await fail_batch(fleet, redis, 3)
    await fail_batch(fleet, redis, 1, OTHER, "fedcba9876543210")
    first = (await local.get("/v1/dead", params={"limit": 3})).json()
    second = (await local.get("/v1/dead", params={"limit": 3, "before": first["next"]})).json()
    by_host = (await local.get("/v1/dead", params={"host": OTHER, "reason": "http_status"})).json()
    by_batch = (await local.get("/v1/dead", params={"batch": BATCH_ID})).json()

    assert [OTHER, LANE, LANE, LANE] == [of["host"] for of in first["letters"] + second["letters"]]
    assert [1, 3] == [len(page["letters"]) for page in (by_host, by_batch)]
    newest = first["letters"][0]
    shown = (await local.get(f"/v1/dead/{newest['position']}")).json()
    unknown = [(await local.get(f"/v1/dead/{name}")).status_code for name in ("1-1", "x", "%00", "9" * 20)]

    assert newest == shown["letter"]
    assert [404] * 4 == unknown
    assert "secret" not in str([shown, first, second, by_host, by_batch])


async def test_a_reason_that_does_not_exist_gets_422_with_the_reasons(
    local: httpx.AsyncClient, fleet: Fleet, redis: Redis
) -> None:
    """In the API and on the pages. No letter is retried or deleted."""
    await fail_batch(fleet, redis, 1)
    refused = [
        await local.get("/v1/dead", params={"reason": "timeout"}),
        await local.post("/v1/dead/retry", json={"reason": "timeout"}),
        await local.post("/v1/dead/purge", json={"reason": "timeout"}),
        await local.get("/dead", params={"reason": "timeout"}),
        await local.get("/dead/retry", params={"reason": "timeout"}),
    ]

    assert [422] * 5 == [response.status_code for response in refused]
    assert all("total_timeout" in response.text for response in refused)
    assert 1 == len(await positions(fleet))


@pytest.mark.parametrize(
    ("body", "words"), [("", "it is empty"), ('{"reason"', "within a value, after 9 bytes")]
)
async def test_an_empty_body_and_a_truncated_one_have_words_of_their_own(
    local: httpx.AsyncClient, body: str, words: str
) -> None:
    """The decoder has one message for both."""
    headers = {"Content-Type": "application/json"}
    for path in ("/v1/dead/retry", "/v1/batches"):
        refused = await local.post(path, content=body, headers=headers)

        assert 400 == refused.status_code
        assert words in refused.json()["detail"]


async def test_dead_letters_are_retried(local: httpx.AsyncClient, fleet: Fleet, redis: Redis) -> None:
    """Those of a filter, or those at positions; others stay."""
    await fail_batch(fleet, redis, 3)
    await fail_batch(fleet, redis, 2, OTHER, "fedcba9876543210")
    by_host = await local.post("/v1/dead/retry", json={"host": OTHER})
    some = (await positions(fleet))[:2]
    by_position = await local.post("/v1/dead/retry", json={"positions": [*some, some[0], "1-1"]})

    assert [2, 2] == [response.json()["fetches"] for response in (by_host, by_position)]
    assert 1 == len(by_host.json()["batches"])
    assert 1 == len(await positions(fleet))


async def test_dead_letters_are_purged(local: httpx.AsyncClient, fleet: Fleet, redis: Redis) -> None:
    """All of them only with `all`."""
    await fail_batch(fleet, redis, 3)
    one = await local.post("/v1/dead/purge", json={"positions": (await positions(fleet))[1:2]})
    rest = await local.post("/v1/dead/purge", json={"all": True})

    assert [1, 2] == [response.json()["purged"] for response in (one, rest)]
    assert [] == await positions(fleet)


@pytest.mark.parametrize(
    "selection",
    [
        {},
        {"all": False},
        {"all": True, "host": LANE},
        {"positions": []},
        {"positions": ["x"]},
        {"positions": ["1-1"], "reason": "timeout"},
        {"host": "a b"},
        {"batch": "x"},
        {"other": 1},
        [],
        None,
    ],
)
@pytest.mark.parametrize("action", ["retry", "purge"])
async def test_an_unclear_selection_changes_nothing(
    local: httpx.AsyncClient, fleet: Fleet, redis: Redis, action: str, selection: object
) -> None:
    """It gets 422."""
    await fail_batch(fleet, redis, 1)
    before = await everything(redis)
    response = await local.post(
        f"/v1/dead/{action}", json=selection, headers={"Content-Type": "application/json"}
    )

    assert 4 == response.status_code // 100
    assert before == await everything(redis)


async def test_every_change_is_logged_with_the_caller(redis_url: str, fleet: Fleet, redis: Redis) -> None:
    """The action, its target and its result, or its error."""
    await fail_batch(fleet, redis, 2)
    async with console(redis_url, token=TOKEN) as client:
        with capture_logs() as captured:
            await client.post(f"{HOST}/pause", headers=BEARER)
            await client.post(f"{HOST}/resume", headers=BEARER)
            await client.put(f"{HOST}/policy", json={"rate_per_s": -1}, headers=BEARER)
            await client.put(f"{HOST}/policy", json={"concurrency": 2, "rate_per_s": None}, headers=BEARER)
            await client.post(f"{HOST}/reset", headers=BEARER)
            await client.post("/v1/dead/retry", json={"host": LANE}, headers=BEARER)
            await client.post("/v1/dead/purge", json={"all": True}, headers=BEARER)
            await client.delete(f"/v1/batches/{BATCH_ID}", headers=BEARER)
            await client.delete("/v1/batches/fedcba9876543210", headers=BEARER)
            await client.get(HOST, headers=BEARER)
    assert {("token", "192.0.2.7")} == {(line["by"], line["peer"]) for line in captured}
    assert_logged(
        [(line["action"], line["target"], line["result"]) for line in captured],
        [
            ("pause", LANE, "done"),
            ("resume", LANE, "done"),
            ("policy", LANE, "failed: "),
            ("policy", LANE, "concurrency=2, rate_per_s unset"),
            ("reset", LANE, "1 host"),
            ("dead.retry", f"host {LANE}", "2 fetches, 0 left"),
            ("dead.purge", "all", "0 letters"),
            ("cancel", BATCH_ID, "0 fetches had no result"),
            ("cancel", "fedcba9876543210", "failed: "),
        ],
    )


def assert_logged(lines: Sequence[tuple[str, str, str]], wanted: Sequence[tuple[str, str, str]]) -> None:
    """Check the lines; each result begins as wanted."""
    assert [line[:2] for line in wanted] == [line[:2] for line in lines]
    assert all(line[2].startswith(want[2]) for line, want in zip(lines, wanted, strict=True))
