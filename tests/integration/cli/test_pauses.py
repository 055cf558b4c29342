"""The commands pause, resume, explain and policy, in every order and form of a host."""

import json
import re
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
    found = operator.json("policy", "show", host)["paused"]
    assert isinstance(found, bool)
    return found


def test_a_pause_of_everything_stops_a_host_that_was_resumed_before(operator: Commands) -> None:
    """A resume under a wider pause is refused with the commands that would work."""
    operator.run("pause", "default")
    refused = operator.invoke("resume", HOST)
    operator.run("resume", "default")
    operator.run("pause", "default")

    assert 2 == refused.exit_code
    assert "fetchfleet resume default;" in refused.output
    assert f"fetchfleet resume {HOST} --except" in refused.output
    assert paused(operator, HOST)
    assert {"default": {"paused": True}} == operator.json("policy", "show")


def test_an_exception_is_named_and_ends_with_its_pause(operator: Commands) -> None:
    """`pause` lists it, and a pause that it limits names it. No trace remains."""
    operator.run("pause", "*.example.com")
    operator.run("resume", "a.example.com", "--except")
    spared = operator.run("pause", "*.com")
    listed, shown = operator.run("pause"), operator.json("pause")
    others = [paused(operator, host) for host in ("a.example.com", "b.example.com", "c.com", "com")]
    operator.run("resume", "*.com")
    ended = operator.run("resume", "*.example.com")

    assert (
        "a.example.com is an exception and continues; pause it with: fetchfleet pause a.example.com" in spared
    )
    assert ["*.com", "*.example.com", "a.example.com"] == sorted([*shown["paused"], *shown["excepted"]])
    assert [line.split()[:2] for line in listed.splitlines()[1:]] == [
        ["*.com", "paused"],
        ["*.example.com", "paused"],
        ["a.example.com", "exception"],
    ]
    assert [False, True, True, False] == others
    assert "a.example.com is no longer an exception" in ended
    assert {} == operator.json("policy", "show")
    assert "nothing is paused" in operator.run("pause")


def test_policy_set_and_unset_cannot_bypass_a_pause(operator: Commands) -> None:
    """The same rules and refusals apply, and other keys beside `paused` are kept."""
    operator.run("policy", "set", HOST, "paused=true", "burst=3")
    operator.run("policy", "set", "default", "paused=true")
    refused = operator.invoke("policy", "set", HOST, "paused=false", "burst=4")
    operator.run("resume", HOST, "--except")
    spared = operator.run("policy", "set", "default", "paused=true")
    operator.run("policy", "unset", "default", "paused")

    assert 2 == refused.exit_code
    assert f"fetchfleet resume {HOST} --except" in refused.output
    assert f"{HOST} is an exception and continues" in spared
    assert {HOST: {"burst": 3}} == operator.json("policy", "show")
    assert not paused(operator, HOST)


def test_a_host_that_older_versions_resumed_is_stopped_and_named(
    operator: Commands, data: sync_redis.Redis
) -> None:
    """The `paused: false` that they leave has no effect on a pause. `policy show` reports it."""
    data.hset(keys.POLICY, mapping={"default": '{"paused":true}', HOST: '{"paused":false}'})
    data.incr(keys.POLICY_VERSION)
    shown = operator.run("policy", "show")
    assert f"{HOST}: paused=false lifts pauses of the policy file only" in shown
    assert paused(operator, HOST)

    operator.run("pause", "default")
    assert {"default": {"paused": True}} == operator.json("policy", "show")


def test_workers_of_older_versions_read_the_tables_of_this_one(
    operator: Commands, data: sync_redis.Redis
) -> None:
    """They skip every field whose value is not a JSON object. The objects have keys that they know."""
    operator.run("pause", "default")
    operator.run("resume", HOST, "--except")
    found = {name: json.loads(text) for name, text in data.hgetall(keys.POLICY).items()}  # type: ignore[union-attr]
    read = {name.decode(): table for name, table in found.items() if isinstance(table, dict)}

    assert {"default": {"paused": True}, HOST: {"paused": False}} == read


@pytest.mark.parametrize("text", [f"http://{HOST}:9000/x", f"{HOST}:9000", f" {HOST}", f"//{HOST}"])
def test_a_host_that_was_never_fetched_is_paused_and_named(operator: Commands, text: str) -> None:
    """A URL stands for its host. A name without a lane may be mistyped."""
    if text.startswith("//"):
        assert 2 == operator.invoke("pause", text).exit_code
        return
    output = operator.run("pause", text)

    assert f"{HOST} is paused; resume it with: fetchfleet resume {HOST}" in output
    assert f"no fetch was sent to {HOST} in the last 2 h" in output
    assert f"{HOST} is resumed" in operator.run("resume", text)
    assert f"{HOST} was not paused" in operator.run("resume", text)


def test_a_mistyped_host_gets_a_suggestion(operator: Commands, data: sync_redis.Redis) -> None:
    """A known lane gets no comment, nor does a pattern that covers one."""
    data.zadd(keys.ATTENTION, {"img.example.com": 1})
    data.hset(keys.lane("img.example.com"), "state", "scheduled")
    assert "did you mean img.example.com?" in operator.run("pause", "imgs.example.com")
    for known in ("img.example.com", "*.example.com", "default"):
        assert "no fetch has ever gone" not in operator.run("pause", known)
    output = operator.run("pause", "*.example.org")
    assert "resume it with: fetchfleet resume '*.example.org'\n" in output
    assert "no fetch was sent to *.example.org" in output
    operator.run("resume", "default")
    operator.run("resume", "*.example.org")
    assert "to see why fetches wait: fetchfleet status" in operator.run("resume", "*.example.org")
    data.delete(keys.ATTENTION, keys.lane("img.example.com"))


def test_explain_of_a_paused_host_names_its_start_and_the_remedy(operator: Commands) -> None:
    """It does so even without waiting fetches, and for a pause of any wider name."""
    operator.run("pause", HOST)
    own = operator.json("explain", f"http://{HOST}:9000/x")
    operator.run("resume", HOST)
    operator.run("pause", "default")
    wide = operator.json("explain", HOST)
    in_words = operator.run("explain", HOST)

    assert ("paused", None) == (own["state"], own["until_ms"])
    assert own["why"].startswith("paused since ")
    assert own["why"].endswith(f"; resume with: fetchfleet resume {HOST}")
    assert wide["why"].startswith("paused with default since ")
    assert (
        f"fetchfleet resume default; or resume this host only: fetchfleet resume {HOST} --except"
        in wide["why"]
    )
    assert in_words.startswith(f"{HOST}: paused; paused with default since ")


@pytest.mark.parametrize("what", ["default", "*.example.com"])
def test_explain_accepts_one_host(operator: Commands, what: str) -> None:
    """A pattern has no lane."""
    refused = operator.invoke("explain", what)
    assert 2 == refused.exit_code
    assert "fetchfleet status" in refused.output


def test_dead_letters_are_found_by_any_form_of_their_host(operator: Commands, data: sync_redis.Redis) -> None:
    """A URL stands for its host there too. Text that names no host is refused."""
    data.xadd(keys.DEAD, {"door": "inbox", "reason": "invalid", "lane": HOST, "element": "x"})
    found = [operator.run("dead", "list", "--host", text) for text in (HOST, f"http://{HOST}:9000/x")]
    refused = operator.invoke("dead", "list", "--host", "a b")

    assert all(HOST in text for text in found)
    assert (2, True) == (refused.exit_code, "does not name a host" in refused.output)


def test_a_reason_that_does_not_exist_is_refused_with_the_list(
    operator: Commands, data: sync_redis.Redis
) -> None:
    """Otherwise a mistyped reason looks as if no letter had it. The reason in --help exists."""
    data.xadd(keys.DEAD, {"door": "lane", "reason": "http_status", "lane": HOST, "element": "x"})
    refused = [operator.invoke("dead", verb, "--reason", "timeout") for verb in ("list", "retry", "purge")]
    named = re.findall(r"--reason (\w+)|such as (\w+)", operator.run("dead", "list", "--help"))

    assert [2] * 3 == [of.exit_code for of in refused]
    assert all("'timeout' does not exist" in of.output and "http_status" in of.output for of in refused)
    assert {"http_status"} == {"".join(groups) for groups in named}
    assert 1 == data.xlen(keys.DEAD)
    assert "1 dead letter deleted" in operator.run("dead", "purge", "--reason", "http_status")
