"""A Redis with the users of ops/users.acl, over a socket or TLS."""

import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
import redis
from redis.asyncio import Redis

from fetchfleet import Fetch, RedisFullError
from fetchfleet.jobs.client.submit import CHUNK_FETCHES, Submitter
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.jobs.scripts import runner
from fetchfleet.worker.redis_support import acl
from tests.support.redis import nothing_stranded, serve, server_binary

ROOT = Path(__file__).parents[2]
ADMIN, ADMIN_PASSWORD = "admin", "test"
ADMIN_RULES = f"user {ADMIN} on >{ADMIN_PASSWORD} ~* &* +@all\n"
MIN_VERSION = 7

PRODUCER_SCRIPTS = {"submit", "undo", "seal", "cancel", "cancel_in_lane"}
VIEW_SCRIPTS = {"lane_rows", "unread_results", "result_rate"}
OPERATOR_SCRIPTS = (
    PRODUCER_SCRIPTS
    | VIEW_SCRIPTS
    | {*("change_policy", "link_retry", "policy_tables", "reschedule_lane", "reset_lane")}
)
_BY_WORKERS_TOO = {"submit", "undo", "seal", "policy_tables", "lane_rows", "unread_results"}
ALONE_SCRIPTS = {"end_lease"}
"""The scripts that only `fetchfleet run` calls, on a Redis of its own."""
WORKER_SCRIPTS = set(runner.scripts()) - (OPERATOR_SCRIPTS - _BY_WORKERS_TOO) - ALONE_SCRIPTS

ScriptsByUser = defaultdict[str, set[str]]


class Refusal(NamedTuple):
    """An entry of Redis's ACL log."""

    user: str
    object: str
    """The refused command or key."""


class GuardedRedis:
    """A running server; `url(user)` is the URL of that user."""

    def __init__(self, socket: Path, passwords: dict[str, str]) -> None:
        self._socket = socket
        self._passwords = {**passwords, ADMIN: ADMIN_PASSWORD}

    def url(self, user: str) -> str:
        """Return the URL of a user, with the password."""
        return f"unix://{user}:{self._passwords[user]}@{self._socket}"

    def over_tls(self, user: str, host: str, port: int, **parameters: str) -> str:
        """Return the TLS URL of a user. parameters: for the query of the URL."""
        return f"rediss://{user}:{self._passwords[user]}@{host}:{port}?{urlencode(parameters)}"

    def password(self, user: str) -> str:
        """Return the password of a user."""
        return self._passwords[user]

    @property
    def admin_url(self) -> str:
        """The URL of a user with all permissions, which is not in ops/users.acl."""
        return self.url(ADMIN)

    def refused(self) -> set[Refusal]:
        """Return every refusal in the ACL log."""
        with redis.Redis.from_url(self.admin_url, decode_responses=True) as client:
            log: list[dict[str, Any]] = client.acl_log()
            return {Refusal(row["username"], row["object"]) for row in log}


def acl_skip_reason() -> str | None:
    """Return the reason to skip tests with ops/users.acl; None if the test server can load it."""
    printed = subprocess.run(
        [server_binary(), "--version"], capture_output=True, text=True, check=False
    ).stdout
    found = re.search(r"v=(\d+)", printed)
    if found and int(found[1]) >= MIN_VERSION:
        return None
    return f"users with selectors need Redis {MIN_VERSION} or newer, found: {printed.strip()}"


def fill_in(folder: Path) -> dict[str, str]:
    """Write users.acl with new passwords, as `fetchfleet acl` does; return each user's password."""
    credentials = {role: acl.new_credentials(role.name) for role in acl.ROLES}
    (folder / "users.acl").write_text(acl.with_passwords(credentials))
    return dict(credentials.values())


def tls_skip_reason() -> str | None:
    """Return the reason to skip tests with TLS; None if the test server supports it."""
    # Without a certificate every server exits. Only a server without TLS has one of these messages.
    command = [server_binary(), "--port", "0", "--tls-port", "6379"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    printed = ended.stdout + ended.stderr
    has_no_tls = any(text in printed for text in ("Bad directive", "Failed finding TLS support"))
    return f"{Path(command[0]).name} was built without TLS" if has_no_tls else None


@contextmanager
def serve_guarded(**more: str) -> Iterator[GuardedRedis]:
    """Yield a running Redis with the users of ops/users.acl. more: server options, with _ in place of -."""
    with TemporaryDirectory(prefix="ff-") as name:
        folder = Path(name)
        passwords = fill_in(folder)
        with (folder / "users.acl").open("a") as users:
            users.write(ADMIN_RULES)
        guarded = GuardedRedis(folder / "redis.sock", passwords)
        options = {"aclfile": "users.acl", "port": "0", "unixsocket": "redis.sock"}
        options |= {name.replace("_", "-"): value for name, value in more.items()}
        with serve(folder, options, guarded.admin_url), nothing_stranded(guarded.admin_url):
            yield guarded


def record_scripts(monkeypatch: pytest.MonkeyPatch) -> ScriptsByUser:
    """Record the scripts that each user runs during the test."""
    ran: ScriptsByUser = defaultdict(set)
    run, run_many = runner.run, runner.run_many

    def user(client: Redis) -> str:
        return str(client.connection_pool.connection_kwargs["username"])

    async def recorded(client: Redis, script: str, *call: Any) -> Any:
        ran[user(client)].add(script)
        return await run(client, script, *call)

    async def recorded_many(client: Redis, calls: Any) -> Any:
        ran[user(client)].update(call.script for call in calls)
        return await run_many(client, calls)

    monkeypatch.setattr(runner, "run", recorded)
    monkeypatch.setattr(runner, "run_many", recorded_many)
    return ran


async def submit_more_than_fits(url: str, admin: Redis) -> None:
    """Submit two chunks; Redis is out of memory at the second, so the first is undone."""

    async def exhaust_memory(_: Any) -> None:
        await admin.config_set("maxmemory", 1)

    fetches = [Fetch(url=f"http://a.example/{i}", key=f"undone {i}") for i in range(CHUNK_FETCHES + 1)]
    async with connect(url) as client:
        try:
            with pytest.raises(RedisFullError, match="nothing was enqueued"):
                await Submitter(client, exhaust_memory).submit(fetches)
        finally:
            await admin.config_set("maxmemory", 0)
