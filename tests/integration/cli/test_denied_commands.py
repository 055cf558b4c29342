"""A command as a Redis user without its rights: the message names the user that has them."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, cast

import pytest
from typer.main import get_group
from typer.testing import CliRunner

from fetchfleet.worker.cli.app import app
from fetchfleet.worker.redis_support.permissions import ROLES, needed_for
from tests.support import guarded_redis
from tests.support.guarded_redis import GuardedRedis

WHY_NOT = guarded_redis.acl_skip_reason()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")

BATCH = "0123456789abcdef"
LIST = "list"
"""A file with one URL in the current folder."""

COMMANDS = {
    "submit": ("submit", LIST),
    "batches": ("batches",),
    "results": ("results", BATCH),
    "export": ("export", BATCH, "results.csv"),
    "cancel": ("cancel", BATCH),
    "health": ("health",),
    "status": ("status", "--json"),
    "explain": ("explain", "a.example"),
    "pause": ("pause", "a.example"),
    "resume": ("resume", "a.example"),
    "reset": ("reset", "a.example"),
    "drain": ("drain", "w"),
    "undrain": ("undrain", "w"),
    "dead list": ("dead", "list"),
    "dead show": ("dead", "show", "1-1"),
    "dead retry": ("dead", "retry", "--all"),
    "dead purge": ("dead", "purge", "--all"),
    "policy show": ("policy", "show", "a.example"),
    "policy set": ("policy", "set", "a.example", "attempts=2"),
    "policy unset": ("policy", "unset", "a.example", "attempts"),
    "inbox add": ("inbox", "add", "a"),
    "inbox list": ("inbox", "list"),
    "inbox remove": ("inbox", "remove", "a"),
}

GROUPS, PROCESSES, OFFLINE = {"dead", "policy", "inbox"}, {"run", "worker"}, {"acl", "wacz"}
FOLLOWING = {"events", "serve", "top"}
"""The commands that run until they are interrupted."""
NAMES = get_group(app).list_commands(cast("Any", None))
OTHERS = {*GROUPS, *PROCESSES, *OFFLINE, *FOLLOWING}
COMMANDS |= {name: (name, "a.example") for name in NAMES if name not in {*COMMANDS, *OTHERS}}


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Return the file LIST, in the current folder."""
    folder = tmp_path_factory.mktemp("listed")
    (folder / LIST).write_text("http://a.example/\n")
    with contextlib.chdir(folder):
        yield


@pytest.fixture(scope="module")
def guarded() -> Iterator[GuardedRedis]:
    """Start a Redis with the users of a fleet."""
    with guarded_redis.serve_guarded() as server:
        yield server


def output_as(guarded: GuardedRedis, user: str, *arguments: str) -> str:
    """Return the output of the command, run as that user."""
    environment = {"FETCHFLEET_REDIS_URL": guarded.url(user)}
    ended = CliRunner().invoke(app, arguments, env=environment)
    return str(ended.exception or "") + ended.output


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_denied_command_names_a_user_that_may_run_it(guarded: GuardedRedis, command: str) -> None:
    """Run as every other user of ops/users.acl. The message also names what the user may do."""
    needed = needed_for(command)
    outputs = {user: output_as(guarded, user, *COMMANDS[command]) for user in ROLES}
    denied = {user: text for user, text in outputs.items() if "docs/security.md" in text}

    assert needed not in denied, denied
    assert {"pusher", "reader"} <= denied.keys()
    for user, text in denied.items():
        assert text.startswith(f"{command}: the Redis user {user} "), text
        assert f"The user {needed} of ops/users.acl may ({user} may {ROLES[user]})" in text
        assert f"redis://{needed}:PASSWORD@" in text
        assert guarded.password(user) not in text


@pytest.mark.parametrize("user", sorted(ROLES.keys() - {"operator"}))
def test_the_events_of_a_fleet_are_for_its_operator(guarded: GuardedRedis, user: str) -> None:
    """Log lines have URLs."""
    output = output_as(guarded, user, "events")

    assert re.match(rf"events: the Redis user {user} (may not run [a-z]+|is refused: )", output), output
    assert "The user operator of ops/users.acl may" in output


@pytest.mark.parametrize("command", ["status", "explain", "pause", "dead list", "policy set"])
def test_a_command_that_a_producer_may_not_run_needs_the_operator(
    guarded: GuardedRedis, command: str
) -> None:
    """The denied Redis command is named."""
    output = output_as(guarded, "producer", *COMMANDS[command])

    assert re.match(rf"{command}: the Redis user producer (may not run [a-z]+|is refused: )", output), output
    assert "The user operator of ops/users.acl may" in output


def test_every_user_of_the_file_and_of_the_page_has_a_description() -> None:
    """A new user needs one too."""
    file = (guarded_redis.ROOT / "ops" / "users.acl").read_text()
    page = (guarded_redis.ROOT / "docs" / "security.md").read_text()

    assert {"default", *ROLES} == {line.split()[1] for line in file.splitlines()}
    assert all(f"| `{user}` |" in page for user in ROLES)
