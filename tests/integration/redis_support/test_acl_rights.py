"""Each user of ops/users.acl, on each key and with each command of Redis, compared with ops/README.md."""

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path

import arq
import pytest
import redis
from typer.testing import CliRunner

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.ids import inbox_prefix
from fetchfleet.jobs.scripts import runner
from fetchfleet.worker.cli.app import app
from fetchfleet.worker.errors import BAD_USE
from fetchfleet.worker.redis_support import acl
from tests.support import guarded_redis
from tests.support.acl_dry_run import ServerCommand, allowed, server_commands
from tests.support.guarded_redis import OPERATOR_SCRIPTS, PRODUCER_SCRIPTS, ROOT, WORKER_SCRIPTS

WHY_NOT = guarded_redis.acl_skip_reason()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")

USERS = [role.name for role in acl.ROLES]
TRUSTED = {"producer", "worker", "operator"}
ID, HOST = "0123456789abcdef", "HOST"
OWN = inbox_prefix("pusher") + "01234567"
PLACEHOLDERS = {"ID": ID, "OWN": OWN, "NAME": "pusher"}
FOREIGN = ["secret", "ff", "arq", "ffx:lane:HOST"]
KEYS = [
    *keys.FIXED,
    *(keys.SWEPT, keys.STATUS_LOGGED, keys.WATCHED),
    *keys.kinds_of_lane(HOST),
    *(key for inbox in ("", "pusher", "OTHER") for key in keys.kinds_of_inbox(inbox)),
    *(key for batch in (ID, OWN) for key in keys.kinds_of_batch(batch)),
    *(keys.receipt(batch, name) for batch in (ID, OWN) for name in ("", "x")),
    *(keys.key("KEY"), keys.robots("ORIGIN"), keys.worker("WORKER"), keys.policy_file("DIGEST")),
    *(keys.arq_job("JOB"), "arq:result:JOB", "arq:in-progress:JOB", "arq:retry:JOB"),
]
NOT_DATA = {"type"}
"""A trusted user may query the type of every key of a fleet."""
CONNECTION = {
    *("asking", "auth", "echo", "hello", "ping", "quit", "readonly", "readwrite", "reset", "select"),
    *("wait", "waitaof"),
}
"""The commands of every client, besides COMMAND, and CLIENT about its own connection."""
OF_A_CLIENT = {
    *("caching", "capa", "getname", "getredir", "help", "id", "import-source", "info", "no-touch", "reply"),
    *("setinfo", "setname", "trackinginfo"),
}
WITHOUT_KEYS = {
    "producer": {"time", "multi", "exec", "unwatch", "script|load"},
    "pusher": set[str](),
    "reader": set[str](),
    "worker": {"time", "info", "dbsize", "script|load", "multi", "exec", "unwatch", "scan"},
    "operator": {"time", "multi", "exec", "unwatch", "script|load", "scan"},
}
OF_THE_UNTRUSTED = {
    "pusher": {
        **{key: {"rpush"} for key in (keys.INBOX, keys.inbox("pusher"))},
        keys.batch(OWN): {"exists", "hget", "hmget", "hgetall"},
        keys.results(OWN): {"xread", "xrange", "xlen"},
        **{key: {"get"} for key in (keys.receipt(OWN), keys.receipt(OWN, "x"))},
    },
    "reader": {
        keys.ALL_RESULTS: {
            *("xreadgroup", "xack", "xautoclaim", "xpending", "xgroup|create"),
            *("xinfo|stream", "xinfo|groups", "xinfo|consumers"),
        }
    },
}
CALLERS = {
    "producer": (PRODUCER_SCRIPTS, ("jobs/client",)),
    "operator": (
        OPERATOR_SCRIPTS,
        ("jobs", "worker/inspect", "worker/cli", "worker/console", "worker/lanes", "worker/policy"),
    ),
    "worker": (WORKER_SCRIPTS, ("jobs", "worker")),
}
"""The scripts of each user, and the folders of the code that runs as it."""
ALWAYS = {"eval", "evalsha", "script|load", "exec", "unwatch"}
"""The commands that jobs/scripts/runner.py and redis-py's pipelines send."""
METHODS = {"delete": "del", "memory_usage": "memory|usage", "scan_iter": "scan", "desc": "zrevrange"}
FOR_OTHERS = {
    "producer": {"hincrby"},
    "operator": {"ttl", "pttl", "xinfo|stream", "hincrby"},
    "worker": {"blmove", "hincrby", "zrandmember"},
}
"""Used by a person at redis-cli, or by earlier versions, which may run beside this one."""


@pytest.fixture(scope="module")
def admin() -> Iterator["redis.Redis"]:
    """Return a client that may test the rights of others, on a Redis with the users of a fleet."""
    with (
        guarded_redis.serve_guarded() as server,
        redis.Redis.from_url(server.admin_url, decode_responses=True) as client,
    ):
        client.ping()  # its connection is not one that the first test leaves behind
        yield client


@pytest.fixture(scope="module")
def commands(admin: "redis.Redis") -> list[ServerCommand]:
    """Return every command of the server."""
    return server_commands(admin)


def rights_of_the_page() -> dict[str, dict[str, str]]:
    """Return the table of keys in ops/README.md: the rights of each user, by the pattern of a key."""
    page = (ROOT / "ops" / "README.md").read_text()
    head, _, *rows = re.search(r"^\| keys \|.*?(?=\n\n)", page, re.MULTILINE | re.DOTALL)[0].splitlines()  # type: ignore[index]
    users = [cell.strip() for cell in head.split("|")[2:-1]]
    found = {}
    for row in rows:
        patterns, *cells = row.split("|")[1:-1]
        rights = dict(zip(users, (cell.strip() for cell in cells), strict=True))
        for pattern in re.findall(r"`([^`]+)`", patterns):
            found[re.sub(r"\b[A-Z]+\b", lambda word: PLACEHOLDERS.get(word[0], word[0]), pattern)] = rights
    return found


def test_each_user_reads_and_writes_the_documented_keys(
    admin: "redis.Redis", commands: list[ServerCommand]
) -> None:
    """Tested with every command that reads or writes. Each key is in one row of the page."""
    page = rights_of_the_page()
    rows = {key: [pattern for pattern in page if fnmatch(key, pattern)] for key in KEYS}
    assert {} == {key: patterns for key, patterns in rows.items() if len(patterns) != 1}
    assert page.keys() == {pattern for patterns in rows.values() for pattern in patterns}

    reading = [of for of in commands if of.takes_keys and "readonly" in of.flags and of.name not in NOT_DATA]
    writing = [of for of in commands if of.takes_keys and "write" in of.flags]
    found, documented = {}, {}
    for user in USERS:
        for key, [pattern] in rows.items():
            may_read = any(allowed(admin, user, [of.on(key) for of in reading]))
            may_write = any(allowed(admin, user, [of.on(key) for of in writing]))
            found[user, key] = "r" * may_read + "w" * may_write
            documented[user, key] = page[pattern][user]

    assert documented == found


@pytest.mark.parametrize("user", USERS)
def test_a_user_may_use_no_key_of_others(
    admin: "redis.Redis", commands: list[ServerCommand], user: str
) -> None:
    """It holds with any command."""
    calls = [of.on(key) for of in commands if of.takes_keys for key in FOREIGN]

    assert [] == [words for words, may in zip(calls, allowed(admin, user, calls), strict=True) if may]


@pytest.mark.parametrize("user", USERS)
def test_a_user_may_run_few_commands_without_keys(
    admin: "redis.Redis", commands: list[ServerCommand], user: str
) -> None:
    """Those of every client and of the user's work: none administers Redis."""
    tried = [of for of in commands if not of.takes_keys]
    replies = allowed(admin, user, [of.on("") for of in tried])
    may = {of.name for of, is_allowed in zip(tried, replies, strict=True) if is_allowed}
    of_connection = {name for name in may if name.startswith("command|")} | CONNECTION
    of_connection |= {f"client|{name}" for name in OF_A_CLIENT}

    assert WITHOUT_KEYS[user] == may - of_connection


def test_only_workers_publish_events_and_only_operators_read_them(admin: "redis.Redis") -> None:
    """No user may use another channel, or a pattern of channels."""
    calls = [[command, keys.EVENTS, "x"] for command in ("publish", "spublish")]
    calls += [[command, keys.EVENTS] for command in ("subscribe", "ssubscribe", "psubscribe")]
    calls += [["publish", "other", "x"], ["subscribe", "other"], ["psubscribe", "*"]]
    may = {
        (user, words[0], words[1])
        for user in USERS
        for words, is_allowed in zip(calls, allowed(admin, user, calls), strict=True)
        if is_allowed
    }

    assert {("worker", "publish", keys.EVENTS), ("operator", "subscribe", keys.EVENTS)} == may


@pytest.mark.parametrize("user", sorted({*USERS} - TRUSTED))
def test_an_untrusted_user_has_exactly_its_commands(
    admin: "redis.Redis", commands: list[ServerCommand], user: str
) -> None:
    """Redis permits them on the user's own keys only, and permits no script."""
    tried = [(of, key) for of in commands if of.takes_keys for key in KEYS]
    replies = allowed(admin, user, [of.on(key) for of, key in tried])
    found: dict[str, set[str]] = {}
    for (of, key), may in zip(tried, replies, strict=True):
        if may:
            found.setdefault(key, set()).add(of.name)

    assert OF_THE_UNTRUSTED[user] == found
    assert [False] * 2 == allowed(admin, user, [["eval", "return 1", "0"], ["evalsha", "0" * 40, "0"]])


def test_the_trusted_users_of_the_page_are_those_of_the_rules() -> None:
    """Exactly those that may run scripts."""
    with_scripts = {
        role.name for role in acl.ROLES if any("eval" in grant.commands.split() for grant in role.grants)
    }
    page = (ROOT / "docs" / "security.md").read_text()
    trusted = dict(re.findall(r"^\| `(\w+)`[^|]* \| (yes|no|as a worker) \|", page, re.MULTILINE))

    assert {role.name: role.is_trusted for role in acl.ROLES} == {
        user: documented != "no" for user, documented in trusted.items()
    }
    assert with_scripts == {role.name for role in acl.ROLES if role.is_trusted} == TRUSTED


@pytest.mark.parametrize("role", [role for role in acl.ROLES if role.is_trusted], ids=lambda role: role.name)
def test_every_right_of_a_trusted_user_is_needed(role: acl.Role) -> None:
    """Each of its commands is in one of its scripts, or called by its code or by arq."""
    scripts, places = CALLERS[role.name]
    used = set(ALWAYS)
    for script in scripts:
        source = runner.source_of(script)
        used |= {call.lower() for call in re.findall(r"'([A-Z_]+)'", source)}
        used |= {"xinfo|groups"} if "'XINFO', 'GROUPS'" in source else set()
    files = [path for place in places for path in (ROOT / place).rglob("*.py")]
    for path in [*files, *Path(arq.__file__).parent.glob("*.py")]:
        called = re.findall(r"\.(\w+)\b|\b(desc)=True", path.read_text())
        used |= {METHODS.get(name, name) for names in called for name in names}
    granted = {command for grant in role.grants for command in grant.commands.split()}

    assert FOR_OTHERS[role.name] == granted - used


def test_the_file_of_the_repository_is_what_the_command_prints() -> None:
    """`fetchfleet acl --template > ops/users.acl` has been run since the rules changed."""
    printed = CliRunner().invoke(app, ["acl", "--template"]).output

    assert printed == acl.template() == (ROOT / "ops" / "users.acl").read_text()


def test_the_command_prints_digests_and_the_passwords_separately(tmp_path: Path) -> None:
    """Passwords go to standard error or a new file with mode 600. An existing file is not overwritten."""
    kept = tmp_path / "passwords"
    shown = CliRunner().invoke(app, ["acl"])
    apart = CliRunner().invoke(app, ["acl", "--passwords", str(kept)])
    again = CliRunner().invoke(app, ["acl", "--passwords", str(kept)])

    for file, text in ((shown.stdout, shown.stderr), (apart.stdout, kept.read_text())):
        passwords = dict(line.split() for line in text.splitlines())
        assert USERS == [*passwords]
        assert len({*passwords.values()}) == len(USERS)
        for user, password in passwords.items():
            assert f"user {user} reset on #{sha256(password.encode()).hexdigest()} " in file
            assert password not in file
    assert "" == apart.stderr
    assert 0o600 == kept.stat().st_mode & 0o777
    assert (BAD_USE, "") == (again.exception.exit_code, again.stdout)  # type: ignore[union-attr]
    assert f"--passwords {kept}: File exists" == str(again.exception)


def test_a_pusher_has_the_inbox_and_the_batches_of_its_name(admin: "redis.Redis") -> None:
    """Redis denies those of other names and the shared inbox. A name cannot be a pattern or another user."""
    printed = CliRunner().invoke(app, ["acl", "--template", "--pusher", "billing", "--pusher", "news"]).output
    users = {line.split()[1]: line.split()[2:] for line in printed.splitlines()}
    assert [*users] == ["default", "producer", "billing", "news", "reader", "worker", "operator"]
    for name in ("billing", "news"):
        rules = " ".join(users[name]).replace(acl.PLACEHOLDER, "nopass")
        admin.execute_command("ACL", "SETUSER", name, *re.findall(r"\([^)]+\)|\S+", rules))  # type: ignore[no-untyped-call]
        batches = {of: inbox_prefix(of) + "01234567" for of in ("billing", "news")}
        calls = {
            **{of: ["rpush", keys.inbox(of), "x"] for of in ("billing", "news", "")},
            **{f"results of {of}": ["xlen", keys.results(batch)] for of, batch in batches.items()},
        }
        may = dict(zip(calls, allowed(admin, name, [*calls.values()]), strict=True))
        assert {name, f"results of {name}"} == {what for what, is_allowed in may.items() if is_allowed}
        assert admin.acl_deluser(name)

    for name in ("*", "a*", "a b", "a:b", "", "taken", "newer", "worker", "default", "UPPER", "a" * 33):
        refused = CliRunner().invoke(app, ["acl", "--pusher", name])
        assert (BAD_USE, "") == (refused.exception.exit_code, refused.stdout)  # type: ignore[union-attr]
        assert f"{name!r} is not a valid inbox name" in str(refused.exception)
