"""The rights that ops/users.acl denies to each user."""

from collections.abc import Iterator

import pytest
from redis.exceptions import NoPermissionError, ResponseError

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.jobs.scripts import runner
from tests.support import forgeries, guarded_redis
from tests.support.guarded_redis import GuardedRedis
from tests.support.lanes import BATCH_ID, LANE, ask, url

WHY_NOT = guarded_redis.acl_skip_reason()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")

OTHERS_KEYS = [
    ("GET", "secret"),
    ("SET", "secret", "x"),
    ("EVAL", "return redis.call('GET', KEYS[1])", 1, "secret"),
]
SERVERS_OWN = [
    *(("CONFIG", "GET", "*"), ("KEYS", "*"), ("FLUSHALL",), ("FLUSHDB",), ("SHUTDOWN", "NOSAVE")),
    *(("ACL", "LIST"), ("BGREWRITEAOF",), ("SCRIPT", "FLUSH"), ("MONITOR",), ("CLIENT", "LIST")),
    *(("CLIENT", "TRACKING", "ON", "BCAST"), ("SAVE",), ("REPLICAOF", "NO", "ONE"), ("FUNCTION", "FLUSH")),
    *(("PUBLISH", "x", "y"), ("MIGRATE", "h", 1, "", 0, 1, "KEYS", keys.SERIAL)),
]
NOT_READ_BY_PRODUCERS = [
    *(("HGETALL", keys.claimed(LANE)), ("HGET", keys.claimed(LANE), "x")),
    *(("ZRANGE", keys.later(LANE), 0, -1), ("LRANGE", keys.waiting_at(LANE, "normal"), 0, -1)),
    *(("LINDEX", keys.waiting_at(LANE, "normal"), 0), ("XRANGE", keys.DEAD, "-", "+")),
    *(("XREAD", "STREAMS", keys.DEAD, 0), ("XREAD", "STREAMS", keys.ALL_RESULTS, 0)),
    *(("LRANGE", keys.INBOX, 0, -1), ("LRANGE", keys.TAKEN, 0, -1), ("GET", keys.worker("w"))),
    *(("SMEMBERS", keys.cancelled(LANE)), ("ZRANGE", keys.WORKERS, 0, -1), ("GET", "arq:job:x")),
    ("GET", keys.policy_file("x")),
]
NOT_WRITTEN_BY_PRODUCERS = [
    *(("XADD", keys.results(BATCH_ID), "*", "r", "{}"), ("XADD", keys.ALL_RESULTS, "*", "r", "{}")),
    *(("XTRIM", keys.results(BATCH_ID), "MAXLEN", 0), ("XDEL", keys.results(BATCH_ID), "0-1")),
    *(("DEL", keys.results(BATCH_ID)), ("PEXPIRE", keys.results(BATCH_ID), 1)),
    *(("XADD", keys.DEAD, "*", "note", "x"), ("RPUSH", keys.INBOX, "x"), ("LPOP", keys.INBOX)),
    ("SET", keys.policy_file("x"), "{}"),
    *(("SET", keys.worker("w"), "x"), ("SET", "arq:result:x", "x"), ("SET", keys.SERIAL, 0)),
    *(("DEL", keys.lane(LANE)), ("DEL", keys.BATCHES), ("HSET", keys.claimed(LANE), "x", "y")),
    ("EVAL", "return redis.call('XADD', KEYS[1], '*', 'r', '{}')", 1, keys.results(BATCH_ID)),
    ("EVAL", "return redis.call('LRANGE', KEYS[1], 0, -1)", 1, keys.waiting_at(LANE, "normal")),
]
NOT_FOR_PUSHERS = [
    *(("LPUSH", keys.INBOX, "x"), ("LRANGE", keys.INBOX, 0, -1), ("LPOP", keys.INBOX), ("DEL", keys.INBOX)),
    *(("RPUSH", keys.TAKEN, "x"), ("RPUSH", "elsewhere", "x"), ("EVAL", "return 1", 0)),
    ("GET", keys.batch(BATCH_ID)),
]
NOT_FOR_READERS = [
    *(("XADD", keys.ALL_RESULTS, "*", "r", "{}"), ("XTRIM", keys.ALL_RESULTS, "MAXLEN", 0)),
    *(("XDEL", keys.ALL_RESULTS, "0-1"), ("DEL", keys.ALL_RESULTS), ("EVAL", "return 1", 0)),
    *(
        ("XGROUP", "DESTROY", keys.ALL_RESULTS, "g"),
        ("XREADGROUP", "GROUP", "g", "c", "STREAMS", keys.DEAD, ">"),
    ),
]
NOT_FOR_OPERATORS = [
    *(("XADD", keys.results(BATCH_ID), "*", "r", "{}"), ("XADD", keys.ALL_RESULTS, "*", "r", "{}")),
    *(("DEL", keys.results(BATCH_ID)), ("DEL", keys.DEAD), ("SET", keys.SERIAL, 0)),
    ("SET", keys.policy_file("x"), "{}"),
]
MAY_NOT = {
    "producer": OTHERS_KEYS + SERVERS_OWN + NOT_READ_BY_PRODUCERS + NOT_WRITTEN_BY_PRODUCERS,
    "pusher": OTHERS_KEYS + SERVERS_OWN + NOT_FOR_PUSHERS,
    "reader": OTHERS_KEYS + SERVERS_OWN + NOT_FOR_READERS,
    "worker": OTHERS_KEYS + SERVERS_OWN,
    "operator": OTHERS_KEYS + SERVERS_OWN + NOT_FOR_OPERATORS,
}


TRUSTED = frozenset({"producer", "worker", "operator"})
OF_THE_TRUSTED = {
    **forgeries.forged_in_lanes(LANE, url(""), BATCH_ID),
    **forgeries.counts_of_others(BATCH_ID),
    **forgeries.SERIALS,
    **forgeries.SCRIPTS,
}
FORGERIES = {
    **OF_THE_TRUSTED,
    **forgeries.results_of_others(BATCH_ID),
    **forgeries.SERVER,
    "a flood of the shared inbox": forgeries.flood("", 3),
    "a flood of its inbox": forgeries.flood("pusher", 3),
    "a flood of another's inbox": forgeries.flood("billing", 3),
}
MAY_TRY = {
    **dict.fromkeys(OF_THE_TRUSTED, TRUSTED),
    **dict.fromkeys(
        (*forgeries.results_of_others(BATCH_ID), "a flood of another's inbox"), frozenset({"worker"})
    ),
    **dict.fromkeys(("a flood of the shared inbox", "a flood of its inbox"), frozenset({"worker", "pusher"})),
}
"""The users whom Redis lets try a forgery. tests/component/ tests how workers handle it."""


@pytest.fixture
def guarded() -> Iterator[GuardedRedis]:
    """Start a Redis with the users of a fleet."""
    with guarded_redis.serve_guarded() as server:
        yield server


@pytest.mark.parametrize("user", MAY_NOT)
async def test_forbidden_commands_of_each_user_are_denied(guarded: GuardedRedis, user: str) -> None:
    """Other keys, the server itself, and the work of other users."""
    done: list[tuple[tuple[str | int, ...], object]] = []
    async with connect(guarded.url(user)) as client:
        for command in MAY_NOT[user]:
            try:
                await ask(client, *command)
            except ResponseError as error:
                if not isinstance(runner.named(error), NoPermissionError):
                    done.append((command, error))
            else:
                done.append((command, None))
    assert [] == done


@pytest.mark.parametrize("user", MAY_NOT)
async def test_redis_denies_forgeries_of_untrusted_users(guarded: GuardedRedis, user: str) -> None:
    """Only trusted users may write to lanes or run scripts. No user may administer Redis."""
    may = set()
    async with connect(guarded.admin_url) as admin, connect(guarded.url(user)) as client:
        for name, command in FORGERIES.items():
            if await ask(admin, "ACL", "DRYRUN", user, *command) == b"OK":
                may.add(name)
            else:
                with pytest.raises(ResponseError):
                    await ask(client, *command)
    assert {name for name, users in MAY_TRY.items() if user in users} == may


async def test_a_denial_within_a_script_is_the_same_error(guarded: GuardedRedis) -> None:
    """Each server has its own text. Callers get one error."""
    names = [keys.INBOX, keys.TAKEN, keys.INTAKE, keys.DEAD, keys.INTAKE]
    call = runner.Call("inbox_take", names, ["token", 1000, 1000, 1, 1, 1, BATCH_ID, 1, 1, 0])
    async with connect(guarded.url("producer")) as client:
        with pytest.raises(NoPermissionError):
            await runner.run(client, *call)
        [refusal] = await runner.run_many(client, [call])
    assert isinstance(refusal, NoPermissionError)


def test_every_user_of_the_file_is_tried() -> None:
    """A new user must be added to this test."""
    file = (guarded_redis.ROOT / "ops" / "users.acl").read_text()
    assert {"default", *MAY_NOT} == {line.split()[1] for line in file.splitlines()}
    assert file.startswith("user default off\n")
