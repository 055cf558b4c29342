"""Webhooks: the signed request at the end of a batch."""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from standardwebhooks import Webhook

from fetchfleet import Fetch, Fleet, InvalidFetchError, Outcome, Reason
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.webhooks import is_webhook, webhook_batch_id
from fetchfleet.worker.inspect.explain import explain_lane
from fetchfleet.worker.inspect.views.batches import batch_detail
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.scheduler import sweep
from tests.component.conftest import QUICK, Lines, Start, tuned
from tests.support.plain_arq import enqueue, job_outcome, plain_arq
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Origin, Seen

OLD_SECRET = "whsec_" + base64.b64encode(b"o" * 32).decode()
SECRET = "whsec_" + base64.b64encode(b"n" * 24).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"z" * 32).decode()
PAGE = Path(__file__).parents[3] / "docs" / "webhooks.md"
RECEIVER_HOST = "127.0.0.13"
QUICK_SWEEP = replace(QUICK, sweep_s=0.05)
NO_SWEEP = replace(QUICK, sweep_s=3600.0)


@pytest.fixture
async def receiver() -> AsyncIterator[Origin]:
    """A service that receives webhooks, on a host of its own."""
    async with Origin.serving(RECEIVER_HOST, o.OK) as serving:
        yield serving


@pytest.fixture
async def signer(start: Start) -> OneWorker:
    """A worker that signs with two secrets and sweeps often."""
    return await start(notify_secret=f"{SECRET},{OLD_SECRET}", timings=QUICK_SWEEP)


def verified(seen: Seen, secret: str = SECRET) -> dict[str, Any]:
    """Return the event of a request whose signature the reference library accepts."""
    event: dict[str, Any] = Webhook(secret).verify(seen.body, dict(seen.headers))
    return event


async def received(receiver: Origin, count: int = 1) -> list[Seen]:
    """Wait until the receiver has answered `count` requests."""
    await wait_until(
        lambda: len([seen for seen in receiver.requests if seen.status is not None]) >= count, "the webhook"
    )
    return receiver.requests


async def test_the_end_of_a_batch_is_posted_with_a_valid_signature(
    origin: Origin, receiver: Origin, signer: OneWorker, redis: Redis
) -> None:
    """The event has the counts. The batch of the webhook ends, is not listed and has no webhook itself."""
    origin.behaviour = o.by_path({"/a": o.OK, "/b": o.NOT_FOUND})

    batch = await signer.fleet.submit(
        [origin.url("/a"), origin.url("/b")], notify=receiver.url("/hooks?tenant=1")
    )
    [seen] = await received(receiver)

    event = verified(seen)
    assert verified(seen, OLD_SECRET) == event
    assert (event["type"], seen.method, seen.target) == ("batch.ended", "POST", "/hooks?tenant=1")
    assert event["data"] == {
        "batch": batch.id,
        "total": 2,
        "stored": 1,
        "unchanged": 0,
        "failed": 1,
        "cancelled": 0,
        "bytes": 2,
    }
    [result] = await results_of(signer.fleet.batch(webhook_batch_id(batch.id)))
    assert (result.outcome, result.path, result.meta) == (Outcome.STORED, None, {"notify": batch.id})
    assert dict(seen.headers)["webhook-id"] == result.id
    await wait_until(lambda: zero_webhooks(redis), "the webhook to be noted as enqueued")
    assert [one.id for one in await signer.fleet.batches()] == [batch.id]
    assert not await redis.hexists(keys.batch(webhook_batch_id(batch.id)), "notify")  # type: ignore[misc]
    assert 0 < await redis.pttl(keys.batch(webhook_batch_id(batch.id))) <= keys.RESULTS_TTL_MS
    assert signer.files() == {f"{batch.id}/000000/{batch.id}-00000000"}
    detail = await batch_detail(redis, batch.id)
    assert detail is not None
    assert (detail.notify, detail.webhook) == (receiver.url("/hooks?tenant=***"), webhook_batch_id(batch.id))


async def zero_webhooks(redis: Redis) -> bool:
    return not await redis.exists(keys.WEBHOOKS)


async def test_the_code_of_the_page_verifies_a_webhook(receiver: Origin, signer: OneWorker) -> None:
    """It accepts the request as it was received, and refuses another body, secret or time."""
    program = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[-1]
    names: dict[str, Any] = {}
    exec(program, names)
    await signer.fleet.submit([], notify=receiver.url("/hooks"))
    [seen] = await received(receiver)
    headers = dict(seen.headers)

    names["verify"](SECRET, headers, seen.body)
    names["verify"](OLD_SECRET, headers, seen.body)
    for changed in (
        (SECRET, headers, seen.body + b" "),
        (OTHER_SECRET, headers, seen.body),
        (SECRET, {**headers, "webhook-timestamp": "1"}, seen.body),
        (SECRET, {**headers, "webhook-id": "another"}, seen.body),
    ):
        with pytest.raises(ValueError, match=r"wrong signature|too old"):
            names["verify"](*changed)


async def test_a_retry_is_signed_again_at_its_own_time(receiver: Origin, signer: OneWorker) -> None:
    """Two failures and a success have one webhook-id, three timestamps and three valid signatures."""
    receiver.behaviour = o.sequence(*[o.latency(1.05, o.status(500))] * 2, o.OK)

    await signer.fleet.submit([], notify=receiver.url("/hooks"))
    requests = await received(receiver, 3)

    headers = [dict(seen.headers) for seen in requests]
    assert [verified(seen)["data"]["total"] for seen in requests] == [0, 0, 0]
    assert len({of["webhook-id"] for of in headers}) == 1
    assert len({of["webhook-timestamp"] for of in headers}) == 3
    assert len({of["webhook-signature"] for of in headers}) == 3
    assert len({seen.body for seen in requests}) == 1


async def test_a_worker_that_dies_after_the_end_of_a_batch_loses_no_webhook(
    origin: Origin, receiver: Origin, start: Start, redis: Redis
) -> None:
    """The first worker never sweeps. The second finds the batch; repeated steps enqueue nothing twice."""
    first = await start(notify_secret=SECRET, timings=NO_SWEEP)
    batch = await first.fleet.submit([origin.url("/a")], notify=receiver.url("/hooks"))
    await batch.wait()
    await first.stop()
    assert receiver.requests == []

    second = await start(notify_secret=SECRET, timings=QUICK_SWEEP, worker_id="two")
    [seen] = await received(receiver)
    webhook = second.fleet.batch(webhook_batch_id(batch.id))
    assert (await webhook.wait()).stored == 1

    # As if the worker had died before it noted that the webhook is enqueued.
    await redis.zadd(keys.WEBHOOKS, {batch.id: 1})
    await wait_until(lambda: zero_webhooks(redis), "the repeated step")
    assert (await webhook.counts()).total == 1
    assert receiver.requests == [seen]


async def test_webhooks_are_found_while_workers_of_an_older_version_take_the_turns(
    receiver: Origin, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those sweep, but know no webhooks."""

    async def taken(*_: object, **__: object) -> bool:
        return False

    monkeypatch.setattr(sweep, "take_turn", taken)
    worker = await start(notify_secret=SECRET, timings=QUICK_SWEEP)

    batch = await worker.fleet.submit([], notify=receiver.url("/hooks"))

    [seen] = await received(receiver)
    assert verified(seen)["data"]["batch"] == batch.id


async def test_a_time_that_another_program_has_changed_stops_no_sweep(
    receiver: Origin, start: Start, redis: Redis, lines: Lines
) -> None:
    """The webhook of that batch is refused; that of another one is posted."""
    first = await start(notify_secret=SECRET, timings=NO_SWEEP)
    changed = await first.fleet.submit([], notify=receiver.url("/changed"))
    await redis.hset(keys.batch(changed.id), "ended_ms", str(2**53 - 1))  # type: ignore[misc]
    await redis.zadd(keys.WEBHOOKS, {changed.id: 1})
    good = await first.fleet.submit([], notify=receiver.url("/good"))
    await start(notify_secret=SECRET, timings=QUICK_SWEEP, worker_id="two")

    [seen] = await received(receiver)

    assert (seen.target, verified(seen)["data"]["batch"]) == ("/good", good.id)
    await wait_until(lambda: zero_webhooks(redis), "the webhooks to be removed")
    refused = [line["batch"] for line in lines if line["event"] == "webhook.refused"]
    assert refused == [changed.id]


@pytest.mark.parametrize("ended_by", ["cancel", "deadline", "empty", "iterator"])
async def test_every_end_of_a_batch_is_posted(
    origin: Origin, receiver: Origin, signer: OneWorker, ended_by: str
) -> None:
    """A cancelled batch, one whose deadline passes, an empty one, and one that is sealed after its end."""
    notify, never = receiver.url("/hooks"), asyncio.Event()
    match ended_by:
        case "cancel":
            origin.behaviour = o.held(never)
            batch = await signer.fleet.submit([origin.url("/a")], notify=notify)
            await wait_until(lambda: origin.requests, "the request")
            await batch.cancel()
        case "deadline":
            origin.behaviour = o.held(never)
            await signer.fleet.submit([Fetch(url=origin.url("/a"), deadline_s=0.2)], notify=notify)
        case "empty":
            await signer.fleet.submit([], notify=notify)
        case _:
            await signer.fleet.submit(iter([origin.url("/a")]), notify=notify)

    [seen] = await received(receiver)

    data = verified(seen)["data"]
    outcomes = {name: data[name] for name in ("stored", "failed", "cancelled") if data[name]}
    expected = {"cancel": {"cancelled": 1}, "deadline": {"failed": 1}, "empty": {}, "iterator": {"stored": 1}}
    assert outcomes == expected[ended_by]


async def test_a_webhook_follows_no_redirect(
    receiver: Origin, other: Origin, signer: OneWorker, lines: Lines
) -> None:
    """A signed request, or a GET in its place, never reaches another host. The failure is a dead letter."""
    receiver.behaviour = o.redirect(other.url("/stolen"), 307)

    batch = await signer.fleet.submit([], notify=receiver.url("/hooks"))
    await received(receiver)
    [result] = await results_of(signer.fleet.batch(webhook_batch_id(batch.id)))

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.REDIRECT_REFUSED)
    assert other.requests == []
    [letter] = [letter async for letter in signer.fleet.dead.iter()]
    assert is_webhook(letter.batch or "")
    receiver.behaviour = o.OK
    await signer.fleet.dead.retry()
    again = (await received(receiver, 2))[1]
    assert verified(again)["data"]["batch"] == batch.id


async def test_a_webhook_waits_for_a_worker_with_a_secret(
    receiver: Origin, start: Start, redis: Redis, lines: Lines
) -> None:
    """A worker without one leaves it to others, and explain names the variable that is missing."""
    timings = replace(tuned(newer_return_s=0.1), sweep_s=0.05, heartbeat_s=0.02, name_check_s=0.1)
    await start(timings=timings)
    batch = await (await start(timings=timings, worker_id="two")).fleet.submit(
        [], notify=receiver.url("/hooks")
    )
    await wait_until(
        lambda: [line for line in lines if line["event"] == "lane.unserved"], "the webhook to wait"
    )

    async def names_the_variable() -> bool:
        why = (await explain_lane(redis, Policy(), RECEIVER_HOST)).why
        return "a worker with FETCHFLEET_NOTIFY_SECRET (for webhooks)" in why

    await wait_until(names_the_variable, "the explanation")
    assert receiver.requests == []

    await start(timings=timings, worker_id="three", notify_secret=SECRET)
    [seen] = await received(receiver)
    assert verified(seen)["data"]["batch"] == batch.id


async def test_a_receiver_at_a_forbidden_address_gets_no_request(
    origin: Origin, receiver: Origin, start: Start, redis: Redis
) -> None:
    """The egress guard applies to webhooks as to every fetch."""
    worker = await start(notify_secret=SECRET, timings=QUICK_SWEEP, allow_net="127.0.0.11/32", alone=True)
    batch = await worker.fleet.submit([origin.url("/a")], notify=receiver.url("/hooks"))
    await batch.wait()

    await wait_until(lambda: redis.exists(keys.batch(webhook_batch_id(batch.id))), "the webhook")
    [result] = await results_of(worker.fleet.batch(webhook_batch_id(batch.id)))
    assert result.reason is Reason.EGRESS_REFUSED
    assert receiver.requests == []


async def test_the_secret_is_in_no_key_and_no_log_line(
    receiver: Origin, signer: OneWorker, redis: Redis, lines: Lines
) -> None:
    """Neither the secret nor the query of the receiver's URL is logged."""
    await signer.fleet.submit([], notify=receiver.url("/hooks?code=quiet"))
    await received(receiver)
    await wait_until(lambda: zero_webhooks(redis), "the webhook to be noted as enqueued")

    text = json.dumps(list(lines), default=str) + repr(signer.settings) + repr(signer.runtime.services)
    for secret in (SECRET, OLD_SECRET):
        coded = secret.removeprefix("whsec_")
        assert coded not in text
        assert base64.b64decode(coded).decode() not in text
    assert "quiet" not in json.dumps(list(lines), default=str)
    for key in [key async for key in redis.scan_iter()]:
        assert SECRET[6:].encode() not in (await redis.dump(key) or b"")


async def test_arq_jobs_and_inbox_messages_name_a_receiver(
    origin: Origin, receiver: Origin, signer: OneWorker, redis: Redis, redis_url: str
) -> None:
    """A message of the shared inbox must name its batch, because others share a generated one."""
    fetches, notify = [origin.url("/a")], receiver.url("/hooks")
    async with plain_arq(redis_url) as pool:
        is_done, receipt = await job_outcome(pool, await enqueue(pool, "fetch", fetches, notify=notify))
    assert is_done
    [seen] = await received(receiver)
    assert verified(seen)["data"]["batch"] == receipt["batch"]

    message = {"batch": "00000000000000ab", "fetches": fetches, "notify": notify}
    await redis.rpush(keys.INBOX, json.dumps(message))  # type: ignore[misc]
    [_, seen] = await received(receiver, 2)
    assert verified(seen)["data"]["batch"] == "00000000000000ab"

    await redis.rpush(keys.INBOX, json.dumps({"fetches": fetches, "notify": notify}))  # type: ignore[misc]
    await redis.rpush(keys.INBOX, json.dumps({**message, "notify": "ftp://x/"}))  # type: ignore[misc]
    await wait_until(lambda: letters(signer.fleet, 2), "the refusals")
    notes = [letter.note async for letter in signer.fleet.dead.iter()]
    assert "needs a batch" in notes[0]
    assert notes[1].startswith("notify: ")


async def test_a_producer_with_an_inbox_names_a_receiver(
    origin: Origin, receiver: Origin, signer: OneWorker, redis: Redis, redis_url: str
) -> None:
    """A list is one message, an iterator goes in parts. The webhooks are not batches of the inbox."""
    await redis.sadd(keys.INBOXES, "billing")  # type: ignore[misc]
    async with Fleet(redis_url, via="inbox", inbox="billing") as fleet:
        whole = await fleet.submit([origin.url("/a")], notify=receiver.url("/hooks"))
        parts = await fleet.submit(iter([origin.url("/b")]), notify=receiver.url("/hooks"))
        requests = await received(receiver, 2)
        with pytest.raises(InvalidFetchError, match=r"^notify: "):
            await fleet.submit([origin.url("/a")], notify="")

    assert {whole.id, parts.id} == {verified(seen)["data"]["batch"] for seen in requests}


async def letters(fleet: Fleet, count: int) -> bool:
    return len([letter async for letter in fleet.dead.iter()]) == count


async def test_a_producer_may_not_have_its_fetches_signed(
    origin: Origin, signer: OneWorker, redis: Redis
) -> None:
    """A signed fetch of its own could forge a webhook."""
    forged = Fetch(url=origin.url("/hooks"), method="POST", body="{}", sign=True)
    for item in (forged, {"url": origin.url("/hooks"), "method": "POST", "body": "{}", "sign": True}):
        with pytest.raises(InvalidFetchError, match="sign: leave it out"):
            await signer.fleet.submit([item])
    message = {"url": origin.url("/hooks"), "method": "POST", "body": "{}", "sign": True}
    await redis.rpush(keys.INBOX, json.dumps(message))  # type: ignore[misc]
    await wait_until(lambda: letters(signer.fleet, 1), "the refusal")
    assert origin.requests == []
