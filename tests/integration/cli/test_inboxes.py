"""The command inbox: register, list and unregister inboxes."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
import redis as sync_redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.ids import inbox_prefix
from fetchfleet.worker.cli import users
from fetchfleet.worker.redis_support import acl
from tests.support.commands import Commands


def test_an_inbox_is_registered_listed_and_unregistered(redis_url: str) -> None:
    """Its messages stay, and a repetition changes nothing."""
    operator = Commands(redis_url)
    for _ in range(2):
        added = operator.run("inbox", "add", "billing")
    operator.run("inbox", "add", "a-1")
    with sync_redis.Redis.from_url(redis_url) as client:
        client.rpush(keys.inbox("billing"), "x")
        client.sadd(keys.INBOXES, "Not a name")
        listed, shown = operator.run("inbox", "list"), operator.run("inbox", "list", "--json")
        removed = operator.run("inbox", "remove", "billing")
        left = client.lrange(keys.inbox("billing"), 0, -1), client.smembers(keys.INBOXES)
        client.delete(keys.inbox("billing"))
    again = operator.invoke("inbox", "remove", "billing")

    assert f"ff:inbox:billing; its batch IDs begin with {inbox_prefix('billing')}" in added
    assert ["a-1", "billing"] == [line.split()[0] for line in listed.splitlines()]
    billing = {"name": "billing", "prefix": inbox_prefix("billing"), "messages": 1}
    assert billing == json.loads(shown.splitlines()[1])
    assert "1 message left in ff:inbox:billing" in removed
    assert ([b"x"], {b"a-1", b"Not a name"}) == left
    assert (1, True) == (again.exit_code, "no inbox billing is registered" in again.output)


def test_an_inbox_is_registered_and_its_user_made_in_one_step(redis_url: str, tmp_path: Path) -> None:
    """Standard output is the line for the ACL file, which Redis accepts. The password is separate."""
    kept = tmp_path / "password"
    made = Commands(redis_url).run("inbox", "add", "billing", "--user", "--passwords", str(kept))
    [line] = [line for line in made.splitlines() if line.startswith("user ")]
    name, password = kept.read_text().split()

    assert ("billing", 0o600) == (name, kept.stat().st_mode & 0o777)
    assert password not in made
    assert line == acl.pusher("billing").line("#" + sha256(password.encode()).hexdigest())
    with sync_redis.Redis.from_url(redis_url) as client:
        assert {b"billing"} == client.smembers(keys.INBOXES)
        client.delete(keys.INBOXES)


@pytest.mark.parametrize("name", ["taken", "newer", "A", "a:b", "*", "x" * 33, "worker"])
def test_an_invalid_inbox_name_is_bad_use(redis_url: str, name: str) -> None:
    """Redis is unchanged."""
    assert 2 == Commands(redis_url).invoke("inbox", "add", name).exit_code


def test_the_number_of_inboxes_is_bounded(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker reads all of them."""
    monkeypatch.setattr(users, "MAX_INBOXES", 1)
    operator = Commands(redis_url)
    operator.run("inbox", "add", "a")

    assert "1 inboxes are registered, which is the limit" in operator.invoke("inbox", "add", "b").output
