"""The commands pause, resume, explain and policy, in every order and form of a host."""

import json
from collections.abc import Iterator

import pytest
import redis as sync_redis

from fetchfleet.jobs import keys
from tests.support.commands import Commands

HOST = "127.0.80.3"


@pytest.fixture
def operator(redis_url: str) -> Commands:
    """Return a terminal."""
    return Commands(redis_url)


@pytest.fixture
def data(redis_url: str) -> Iterator[sync_redis.Redis]:
    """Return a client to read Redis."""
    with sync_redis.Redis.from_url(redis_url) as client:
        yield client


def paused(operator: Commands, host: str) -> bool:
    """Return whether the policy in force pauses the host."""
    found = operator.reads("policy", "show", host)["paused"]
    assert isinstance(found, bool)
    return found


def test_a_pause_of_everything_stops_a_host_that_was_resumed_before(operator: Commands) -> None:
    """A resume under a wider pause is refused with the commands that would work."""
    operator.does("pause", "default")
    refused = operator.asks("resume", HOST)
    operator.does("resume", "default")
    operator.does("pause", "default")

    assert 2 == refused.code
    assert "fetchfleet resume default;" in refused.text
    assert f"fetchfleet resume {HOST} --except" in refused.text
    assert paused(operator, HOST)
    assert {"default": {"paused": True}} == operator.reads("policy", "show")


def test_an_exception_is_named_and_ends_with_its_pause(operator: Commands) -> None:
    """`pause` lists it, and a pause that it limits names it. No trace remains."""
    operator.does("pause", "*.example.com")
    operator.does("resume", "a.example.com", "--except")
    spared = operator.does("pause", "*.com")
    listed, shown = operator.does("pause"), operator.reads("pause")
    others = [paused(operator, host) for host in ("a.example.com", "b.example.com", "c.com", "com")]
    operator.does("resume", "*.com")
    ended = operator.does("resume", "*.example.com")

    assert "not stopped: a.example.com, an exception; stop it with: fetchfleet pause a.example.com" in spared
    assert ["*.com", "*.example.com", "a.example.com"] == sorted([*shown["paused"], *shown["excepted"]])
    assert [line.split()[:2] for line in listed.splitlines()[1:]] == [
        ["*.com", "paused"],
        ["*.example.com", "paused"],
        ["a.example.com", "exception"],
    ]
    assert [False, True, True, False] == others
    assert "no exception any more: a.example.com" in ended
    assert {} == operator.reads("policy", "show")
    assert "nothing is paused" in operator.does("pause")


def test_policy_set_and_unset_cannot_bypass_a_pause(operator: Commands) -> None:
    """The same rules and refusals apply, and other keys beside `paused` are kept."""
    operator.does("policy", "set", HOST, "paused=true", "burst=3")
    operator.does("policy", "set", "default", "paused=true")
    refused = operator.asks("policy", "set", HOST, "paused=false", "burst=4")
    operator.does("resume", HOST, "--except")
    spared = operator.does("policy", "set", "default", "paused=true")
    operator.does("policy", "unset", "default", "paused")

    assert 2 == refused.code
    assert f"fetchfleet resume {HOST} --except" in refused.text
    assert f"not stopped: {HOST}" in spared
    assert {HOST: {"burst": 3}} == operator.reads("policy", "show")
    assert not paused(operator, HOST)


def test_a_host_that_older_versions_resumed_is_stopped_and_named(
    operator: Commands, data: sync_redis.Redis
) -> None:
    """The `paused: false` that they leave has no effect on a pause. `policy show` reports it."""
    data.hset(keys.POLICY, mapping={"default": '{"paused":true}', HOST: '{"paused":false}'})
    data.incr(keys.POLICY_VERSION)
    shown = operator.does("policy", "show")
    assert f"{HOST}: paused=false lifts pauses of the policy file only" in shown
    assert paused(operator, HOST)

    operator.does("pause", "default")
    assert {"default": {"paused": True}} == operator.reads("policy", "show")


def test_workers_of_older_versions_read_the_tables_of_this_one(
    operator: Commands, data: sync_redis.Redis
) -> None:
    """They skip every field whose value is no JSON object. The objects have keys that they know."""
    operator.does("pause", "default")
    operator.does("resume", HOST, "--except")
    found = {name: json.loads(text) for name, text in data.hgetall(keys.POLICY).items()}  # type: ignore[union-attr]
    read = {name.decode(): table for name, table in found.items() if isinstance(table, dict)}

    assert {"default": {"paused": True}, HOST: {"paused": False}} == read


@pytest.mark.parametrize("text", [f"http://{HOST}:9000/x", f"{HOST}:9000", f" {HOST}", f"//{HOST}"])
def test_a_host_that_was_never_fetched_is_paused_and_named(operator: Commands, text: str) -> None:
    """A URL stands for its host. A name without a lane may be mistyped."""
    if text.startswith("//"):
        assert 2 == operator.asks("pause", text).code
        return
    said = operator.does("pause", text)

    assert f"{HOST} is paused; go on with: fetchfleet resume {HOST}" in said
    assert f"no fetch has ever gone to {HOST}, as far as Redis remembers" in said
    assert f"{HOST} goes on" in operator.does("resume", text)
    assert f"{HOST} was not paused" in operator.does("resume", text)


def test_a_mistyped_host_gets_a_suggestion(operator: Commands, data: sync_redis.Redis) -> None:
    """A known lane gets no comment, nor does a pattern that covers one."""
    data.zadd(keys.ATTENTION, {"img.example.com": 1})
    data.hset(keys.lane("img.example.com"), "state", "scheduled")
    assert "did you mean img.example.com?" in operator.does("pause", "imgs.example.com")
    for known in ("img.example.com", "*.example.com", "default"):
        assert "no fetch has ever gone" not in operator.does("pause", known)
    said = operator.does("pause", "*.example.org")
    assert "go on with: fetchfleet resume '*.example.org'\n" in said
    assert "no fetch has ever gone to *.example.org" in said
    operator.does("resume", "default")
    operator.does("resume", "*.example.org")
    assert "see what waits: fetchfleet status" in operator.does("resume", "*.example.org")
    data.delete(keys.ATTENTION, keys.lane("img.example.com"))


def test_explain_of_a_paused_host_names_its_start_and_the_remedy(operator: Commands) -> None:
    """Also without waiting fetches, and for a pause of any wider name."""
    operator.does("pause", HOST)
    own = operator.reads("explain", f"http://{HOST}:9000/x")
    operator.does("resume", HOST)
    operator.does("pause", "default")
    wide = operator.reads("explain", HOST)
    in_words = operator.does("explain", HOST)

    assert ("paused", None) == (own["state"], own["until_ms"])
    assert own["why"].startswith("paused since ")
    assert own["why"].endswith(f"; resume with: fetchfleet resume {HOST}")
    assert wide["why"].startswith("paused with default since ")
    assert f"fetchfleet resume default; or this host alone: fetchfleet resume {HOST} --except" in wide["why"]
    assert in_words.startswith(f"{HOST}: paused; paused with default since ")


@pytest.mark.parametrize("what", ["default", "*.example.com"])
def test_explain_accepts_one_host(operator: Commands, what: str) -> None:
    """A pattern has no lane."""
    said = operator.asks("explain", what)
    assert 2 == said.code
    assert "fetchfleet status" in said.text


def test_dead_letters_are_found_by_any_form_of_their_host(operator: Commands, data: sync_redis.Redis) -> None:
    """A URL stands for its host there too. Text that names no host is refused."""
    data.xadd(keys.DEAD, {"door": "inbox", "reason": "invalid", "lane": HOST, "element": "x"})
    found = [operator.does("dead", "list", "--host", text) for text in (HOST, f"http://{HOST}:9000/x")]
    refused = operator.asks("dead", "list", "--host", "a b")

    assert all(HOST in text for text in found)
    assert (2, True) == (refused.code, "does not name a host" in refused.text)
