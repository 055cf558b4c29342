"""The output of the command reset."""

from collections.abc import Iterator

import pytest
import redis as sync_redis

from fetchfleet.jobs import keys
from fetchfleet.worker.gate.state import Breaker, GateState, to_json
from tests.support.commands import Commands

HOST = "127.0.80.3"
FAR_MS = 10**14
BROKEN = GateState(breaker=Breaker.OPEN, open_until_ms=FAR_MS, cool_until_ms=FAR_MS)


@pytest.fixture
def operator(redis_url: str) -> Commands:
    """Return a terminal."""
    return Commands(redis_url)


@pytest.fixture
def data(redis_url: str) -> Iterator[sync_redis.Redis]:
    """Return a client to access Redis."""
    with sync_redis.Redis.from_url(redis_url) as client:
        yield client


def park(data: sync_redis.Redis, lane: str, gate: GateState) -> None:
    """Create an idle lane with this state."""
    data.hset(keys.lane(lane), mapping={"state": "idle", "gate": to_json(gate), "shut_until_ms": FAR_MS})
    data.pexpire(keys.lane(lane), keys.GATE_TTL_MS)


def test_reset_names_the_state_that_it_clears(operator: Commands, data: sync_redis.Redis) -> None:
    """A URL stands for its host. A pause stays, and the output names the command that ends it."""
    park(data, HOST, BROKEN)
    operator.run("pause", "default")
    output = operator.run("reset", f"http://{HOST}:9000/")
    read = operator.json("reset", HOST)

    assert f"{HOST}: reset once a worker acquires the lane: breaker, cool-down" in output
    assert "fetchfleet resume default" in output
    assert "no worker is running" in output
    assert {
        "lane": HOST,
        "reset": ["breaker", "cool_down"],
        "retries": 0,
        "held": False,
        "pending": True,
    } == (read["lanes"][0])
    assert "@" in str(data.hget(keys.lane(HOST), "reset"))


def test_a_pattern_resets_every_host_below_it(operator: Commands, data: sync_redis.Redis) -> None:
    """Hosts with state to clear are named."""
    park(data, "a.cdn.net", BROKEN)
    park(data, "b.cdn.net", GateState())
    park(data, "c.org", BROKEN)
    output = operator.run("reset", "*.cdn.net")

    assert "a.cdn.net: reset" in output
    assert "2 hosts reset; 1 had a state to clear" in output
    assert not data.hexists(keys.lane("c.org"), "reset")


def test_reset_of_an_unknown_host_is_an_error(operator: Commands, data: sync_redis.Redis) -> None:
    """A mistyped one gets a suggestion."""
    data.hset(keys.lane("img.example.com"), "state", "scheduled")
    data.zadd(keys.ATTENTION, {"img.example.com": 1})
    refused = operator.invoke("reset", "imgs.example.com")
    data.delete(keys.lane("img.example.com"), keys.ATTENTION)

    assert 1 == refused.exit_code
    assert "no fetch was sent to imgs.example.com" in refused.output
    assert "did you mean img.example.com?" in refused.output
    assert not data.exists(keys.lane("imgs.example.com"))
