"""Webhooks of a fleet whose worker is killed between the end of batches and their webhooks."""

import asyncio
import base64
from pathlib import Path

from redis.asyncio import Redis
from standardwebhooks import Webhook

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.webhooks import webhook_batch_id
from tests.support.named_workers import named_workers, results_of
from tests.support.waiting import wait_until
from tests.support.workers import fetchfleet
from tools.origin.behaviours import OK
from tools.origin.server import Origin

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
BATCHES = 40


async def test_every_batch_of_a_killed_worker_has_one_webhook(
    redis_url: str, redis: Redis, fleet: Fleet, tmp_path: Path
) -> None:
    """The worker is killed while it enqueues webhooks. Each batch has one, with a valid signature."""
    settings = {"FETCHFLEET_NOTIFY_SECRET": SECRET, "FETCHFLEET_LEASE_S": "1"}
    async with Origin.serving("127.0.0.197", OK) as origin, Origin.serving("127.0.0.198", OK) as receiver:
        with named_workers(redis_url, tmp_path, **settings) as fleet_of_workers:
            [first] = await fleet_of_workers.start_all("first")
            batches = [
                await fleet.submit([origin.url(f"/{n}")], notify=receiver.url("/hooks"))
                for n in range(BATCHES)
            ]
            await wait_until(lambda: receiver.requests, "the first webhook", every_s=0.001)
            first.kill()
            await fleet_of_workers.start_all("second")

            async def all_enqueued() -> bool:
                return not await redis.exists(keys.WEBHOOKS)

            await wait_until(all_enqueued, "every webhook to be enqueued", 40.0)
            webhooks = [fleet.batch(webhook_batch_id(batch.id)) for batch in batches]
            counts = await asyncio.gather(*(webhook.wait() for webhook in webhooks))
            results = [await results_of(fleet, webhook.id) for webhook in webhooks]

    assert [(1, 1)] * BATCHES == [(of.total, of.stored) for of in counts]
    assert all(len(of) == 1 for of in results)
    events = {
        dict(seen.headers)["webhook-id"]: Webhook(SECRET).verify(seen.body, dict(seen.headers))
        for seen in receiver.requests
    }
    assert {batch.id for batch in batches} == {event["data"]["batch"] for event in events.values()}
    assert len(events) == BATCHES


async def test_the_command_names_a_receiver(redis_url: str, tmp_path: Path) -> None:
    """`submit --notify` waits for the fetches, not for the webhook. An unusable URL exits with 2."""
    (tmp_path / "urls.txt").write_text("http://127.0.0.197:1/a\n")
    async with Origin.serving("127.0.0.198", OK) as receiver:
        with named_workers(redis_url, tmp_path / "fleet", FETCHFLEET_NOTIFY_SECRET=SECRET) as running:
            await running.start_all("one")
            arguments = ("submit", str(tmp_path / "urls.txt"), "--redis", redis_url, "--notify")
            done = await asyncio.to_thread(fetchfleet, *arguments, receiver.url("/hooks"))
            refused = await asyncio.to_thread(fetchfleet, *arguments, "app.example.com/hooks")
            await wait_until(lambda: receiver.requests, "the webhook", 40.0)

    assert (done.returncode, refused.returncode) == (0, 2)
    assert "--notify: " in refused.stderr
    [seen] = receiver.requests
    event = Webhook(SECRET).verify(seen.body, dict(seen.headers))
    assert (event["data"]["batch"], event["data"]["failed"]) == (done.stdout.strip(), 1)


def test_a_worker_with_an_unusable_secret_does_not_start(redis_url: str, tmp_path: Path) -> None:
    """It exits with 2, and the error does not show the secret."""
    environment = {"FETCHFLEET_NOTIFY_SECRET": f"{SECRET},whsec_c2hvcnQ="}
    with named_workers(redis_url, tmp_path, **environment) as running:
        worker = running.start("one")
        code = worker.process.wait(30)
    log = (tmp_path / "one.log").read_text()

    assert code == 2
    assert "FETCHFLEET_NOTIFY_SECRET: secret 2 must be whsec_" in log
    assert "c2hvcnQ" not in log
    assert SECRET not in log
