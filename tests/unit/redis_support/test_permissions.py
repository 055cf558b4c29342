"""The message for a command that Redis denies."""

import pytest
from redis.exceptions import NoPermissionError

from fetchfleet.jobs.errors import FleetUnreachableError
from fetchfleet.worker.errors import CommandError
from fetchfleet.worker.redis_support.errors import (
    DeniedError,
    UnreachableFleetError,
    followed_at,
    redis_at,
)
from fetchfleet.worker.redis_support.permissions import denial_in, explained, user_of

ZRANGE = "User bob has no permissions to run the 'zrange' command"


def test_a_denial_is_found_inside_the_error_of_a_command() -> None:
    """It is found under any wrapping. The user is that of the URL, or the one that Redis names."""
    with pytest.raises(DeniedError) as denied, redis_at("redis://b%40b:secret@h:1"):
        raise NoPermissionError("No permissions to access a key")
    wrapped = CommandError("wrapped")
    wrapped.__cause__ = NoPermissionError(ZRANGE)

    assert "b@b" == denied.value.user
    assert denied.value is denial_in(denied.value)
    assert (found := denial_in(wrapped)) is not None
    assert ("bob", ZRANGE) == (found.user, found.message)
    assert denial_in(CommandError("another")) is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["status"], "env"),
        (["status", "--redis", "redis://b%40b:pw@h"], "b@b"),
        (["status", "--redis=redis://bob:pw@h", "--json"], "bob"),
        (["status", "--redis", "redis://h"], "default"),
        (["status", "--redis"], "default"),
        (["status", "--redis", "redis://[h"], ""),
    ],
)
def test_the_user_is_that_of_the_given_url(arguments: list[str], expected: str) -> None:
    """The URL is that of the option, else of the environment."""
    assert expected == user_of(arguments, {"FETCHFLEET_REDIS_URL": "unix://env:pw@/run/redis.sock"})


@pytest.mark.parametrize(
    ("denial", "parts"),
    [
        (
            DeniedError("bob", ZRANGE),
            ("status: the Redis user bob may not run zrange.", "operator:PASSWORD@"),
        ),
        (DeniedError("", "No permissions to access a key"), ("this Redis user is refused: No permissions",)),
        (
            DeniedError("producer", ZRANGE),
            ("(producer may enqueue and cancel", "if this program is as trusted"),
        ),
        (DeniedError("operator", ZRANGE), ("fetchfleet acl --keep users.acl",)),
        (DeniedError("default", "script http://u:pw@h/?token=t"), ("the Redis user default is refused",)),
    ],
)
def test_a_denial_names_the_command_the_user_and_the_remedy(
    denial: DeniedError, parts: tuple[str, ...]
) -> None:
    """A user with too few rights has an old file. Secrets of a URL are not shown."""
    explanation = explained("status", denial)

    assert all(part in explanation for part in parts), explanation
    assert "pw" not in explanation


@pytest.mark.parametrize(("user", "has"), [("pusher", True), ("billing", True), ("reader", False)])
def test_a_denial_points_a_user_with_an_inbox_to_via_inbox(user: str, *, has: bool) -> None:
    """The hint appears only for commands that support the option."""
    denial = DeniedError(user, "User has no permissions to run the 'evalsha' command")

    assert has == ("--via inbox" in explained("submit", denial))
    assert "--via inbox" not in explained("status", denial)


def test_a_missing_worker_is_not_reported_as_a_missing_redis() -> None:
    """A producer with an inbox waits for a worker, while Redis answers."""
    explanation = r"\Ano worker .*\ncontinue with: x\Z"
    with pytest.raises(UnreachableFleetError, match=explanation), followed_at("redis://h", lambda _: "x"):
        raise FleetUnreachableError("no worker has answered", "f" * 16)
