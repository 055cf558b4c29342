"""Commands of a producer with only an inbox: submit and results with --via inbox."""

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Event, Thread

import pytest
import redis as sync_redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import Submitter
from fetchfleet.jobs.contract.ids import inbox_prefix
from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.intake.inbox import InboxReader
from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.redis_support.health import RedisErrorReporter
from fetchfleet.worker.util import aio
from tests.support import guarded_redis
from tests.support.commands import Commands
from tests.support.guarded_redis import GuardedRedis

WHY_NOT = guarded_redis.acl_skip_reason()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")


async def nothing(_: Iterable[LaneNotification]) -> None:
    """Wake no lane."""


async def empty_inboxes(url: str, ended: Event) -> None:
    """Empty the inboxes as a worker does, until the event."""
    log = get_logger()
    async with connect(url) as client:
        reader = InboxReader(url, "w", Submitter(client, nothing), RedisErrorReporter(log), log)
        running = asyncio.create_task(reader.run())
        await asyncio.to_thread(ended.wait)
        await aio.end(running)
        await reader.aclose()


@pytest.fixture
def guarded() -> Iterator[GuardedRedis]:
    """Start a Redis with the users of a fleet, and a worker that empties the inbox of `pusher`."""
    with guarded_redis.serve_guarded() as server:
        with sync_redis.Redis.from_url(server.admin_url) as admin:
            admin.sadd(keys.INBOXES, "pusher")
        ended = Event()
        worker = Thread(target=lambda: asyncio.run(empty_inboxes(server.url("worker"), ended)))
        worker.start()
        try:
            yield server
        finally:
            ended.set()
            worker.join()
            with sync_redis.Redis.from_url(server.admin_url) as admin:
                admin.flushall()


def test_a_pusher_submits_and_reads(guarded: GuardedRedis, tmp_path: Path) -> None:
    """Redis denies none of its commands. A foreign batch or a wrong flag is bad use, with a message."""
    file = tmp_path / "urls.txt"
    file.write_text("http://a.example/1\nhttp://a.example/2\n")
    pusher = Commands(guarded.url("pusher"))
    batch = pusher.run("submit", str(file), "--via", "inbox").split()[-1]
    read = pusher.run("results", batch, "--via", "inbox")
    exported = pusher.run("export", batch, str(tmp_path / "results.csv"), "--via", "inbox")
    other = pusher.invoke("results", "0123456789abcdef", "--via", "inbox")
    limited = pusher.invoke("submit", str(file), "--via", "inbox", "--max-backlog", "1")
    nowhere = pusher.invoke("submit", str(file), "--via", "mail")
    assert set() == guarded.refused()
    with sync_redis.Redis.from_url(guarded.admin_url) as admin:
        total = admin.hget(keys.batch(batch), "total")

    assert batch.startswith(inbox_prefix("pusher"))
    assert b"2" == total
    assert "to continue after these results" in read
    assert "the batch has not ended" in exported
    assert (2, True) == (other.exit_code, "begin with" in other.output)
    assert (2, True) == (limited.exit_code, "--max-backlog" in limited.output)
    assert (2, True) == (nowhere.exit_code, "choose lanes or inbox" in nowhere.output)
