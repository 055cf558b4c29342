"""The password of Redis appears in no representation, log line or message."""

import io
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import pytest
from redis.exceptions import RedisError
from rich.console import Console

from fetchfleet import Fleet, JobsError, RedisSetupError
from fetchfleet.jobs.client.submit import Submitter
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.intake.inbox import InboxReader
from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.redis_support.errors import UnreachableRedisError
from fetchfleet.worker.runtime.build import build
from fetchfleet.worker.runtime.heartbeat import Heartbeat
from fetchfleet.worker.runtime.runtime import Runtime
from fetchfleet.worker.settings import Settings, SettingsError, load_settings
from fetchfleet.worker.util.clock import RedisClock
from tests.support.redis import serve
from tests.support.waiting import wait_until
from tests.support.workers import Workers, fetchfleet, workers

CANARY = "k4n4ry"
PASSWORD = f"{CANARY}:/?#[]@%&=+ {CANARY[::-1]}"
SECRETS = {CANARY, CANARY[::-1]}
NOWHERE = f"redis://user:{quote(PASSWORD, safe='')}@127.0.0.176:1/0"
URLS = [
    NOWHERE,
    f"redis://:{CANARY}@127.0.0.176:1",
    f"rediss://user:{CANARY}@127.0.0.176:1",
    f"unix://user:{CANARY}@/nowhere/redis.sock",
    f"redis://127.0.0.176:1/0?password={CANARY}",
]
BAD_URLS = [
    f"redis://user:{PASSWORD}@127.0.0.176:1/0",
    f"redis://:1{CANARY}/x@127.0.0.176",
    f"redis://:1/{CANARY}@127.0.0.176",
    f"redis://:1?{CANARY}@127.0.0.176",
    f"redis://{CANARY}:1#x@127.0.0.176",
    f"redis://127.0.0.176/0?{CANARY}=x",
    f"rediss://:{CANARY}@127.0.0.176?ssl_cert_reqs=none",
    f"rediss://:{CANARY}@127.0.0.176?ssl_{CANARY}=1",
    f"http://:{CANARY}@127.0.0.176",
    f"redis://[{CANARY}",
]


def secrets_in(text: str) -> set[str]:
    """Return the parts of the password in the text."""
    return {secret for secret in SECRETS if secret in text}


def shown(*things: object) -> str:
    """Return all that a log line, a prompt or a rich traceback could show of the objects."""
    screen = io.StringIO()
    for thing in things:
        Console(file=screen, width=500).print(thing)
    return screen.getvalue() + "".join(f"{thing} {thing!r}" for thing in things)


@pytest.mark.parametrize("url", URLS)
async def test_no_object_with_the_redis_url_shows_its_password(url: str, tmp_path: Path) -> None:
    """Objects of producers and of workers."""
    settings = Settings(redis_url=url, out=tmp_path)
    async with Fleet(url) as fleet, connect(url) as redis:
        submitter = Submitter(redis, fleet.notify)
        unused: Any = None
        heartbeat = Heartbeat(redis, settings, RedisClock(), *[unused] * 5, fleet_check=unused, every_s=1.0)
        intake = InboxReader(url, "w", submitter, print, get_logger())
        parts: dict[str, Any] = dict.fromkeys(part.name for part in fields(Runtime) if part.init)
        runtime = Runtime(
            **{**parts, "settings": settings, "redis": redis, "inbox": intake, "heartbeat": heartbeat}
        )
        things = [settings, runtime, heartbeat, intake, submitter, redis, redis.connection_pool]
        things += [fleet, fleet.batch("0" * 16), fleet.dead]
        assert set() == secrets_in(shown(*things))
        await intake.aclose()


@pytest.mark.parametrize("url", URLS)
async def test_no_connection_error_shows_the_password(url: str, tmp_path: Path, stream: io.StringIO) -> None:
    """The causes of the error and the log do not show it either."""
    errors: list[BaseException] = []
    async with Fleet(url, redis_patience_s=0) as fleet:
        with pytest.raises(RedisError) as of_a_producer:
            await fleet.submit(["http://a.example/"])
        errors += chain(of_a_producer.value)
    with pytest.raises(UnreachableRedisError) as of_a_worker:
        await build(Settings(redis_url=url, out=tmp_path))
    errors += chain(of_a_worker.value)
    assert set() == secrets_in(shown(*errors) + stream.getvalue())


def chain(error: BaseException) -> list[BaseException]:
    """Return the error and the errors that a traceback shows before it."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return [error, *(chain(before) if before else [])]


@pytest.mark.parametrize("url", BAD_URLS)
def test_no_error_about_a_bad_url_shows_the_password(url: str) -> None:
    """The password may be misplaced in the URL."""
    with pytest.raises(RedisSetupError) as of_jobs:
        Fleet(url)
    with pytest.raises(SettingsError) as of_a_worker:
        load_settings({"redis_url": url}, {})
    errors = [*chain(of_jobs.value), *chain(of_a_worker.value)]
    assert isinstance(of_jobs.value, JobsError)
    assert set() == secrets_in(shown(*errors))


@pytest.mark.parametrize("command", ["submit", "worker", "health"])
@pytest.mark.parametrize("url", [NOWHERE, BAD_URLS[0]], ids=["unreachable", "bad"])
def test_no_command_prints_the_password(command: str, url: str, tmp_path: Path) -> None:
    """The error is one line, for the flag and for the variable; submit adds how to continue."""
    arguments = [command, *(["-"] if command == "submit" else [])]
    where = {"FETCHFLEET_OUT": str(tmp_path), "FETCHFLEET_REDIS_PATIENCE_S": "0"}
    goes_on = command == "submit" and url is NOWHERE
    by_flag = fetchfleet(*arguments, "--redis", url, stdin="http://a.example/", **where)
    by_variable = fetchfleet(*arguments, stdin="http://a.example/", FETCHFLEET_REDIS_URL=url, **where)
    for ended in (by_flag, by_variable):
        assert ((3 if goes_on else 1) if url is NOWHERE else 2) == ended.returncode
        assert (2 if goes_on else 1) == len(ended.stderr.splitlines())
        assert set() == secrets_in(ended.stderr + ended.stdout)


class Locked:
    """A Redis with a password that can be stopped and started."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self.start()

    def url(self, password: str = PASSWORD) -> str:
        """Return the URL with this password."""
        return f"unix://default:{quote(password, safe='')}@{self._folder}/redis.sock"

    def start(self) -> None:
        """Start it, empty."""
        options = {"port": "0", "unixsocket": "redis.sock", "requirepass": PASSWORD}
        self._server = self._stack.enter_context(ExitStack())
        self._server.enter_context(serve(self._folder, options, self.url()))

    def stop(self) -> None:
        """Stop it."""
        self._server.close()


@pytest.fixture
def locked() -> Iterator[Locked]:
    """A Redis that requires PASSWORD."""
    with TemporaryDirectory(prefix="ff-") as folder, ExitStack() as stack:
        yield Locked(Path(folder), stack)


@pytest.mark.parametrize("command", ["submit", "worker", "health"])
def test_a_wrong_password_is_reported_without_printing_it(
    locked: Locked, command: str, tmp_path: Path
) -> None:
    """Each command exits with code 1 and prints one line."""
    arguments = [command, *(["-"] if command == "submit" else [])]
    wrong = {"FETCHFLEET_OUT": str(tmp_path), "FETCHFLEET_REDIS_URL": locked.url(f"not {PASSWORD}")}
    ended = fetchfleet(*arguments, stdin="http://a.example/", **wrong)
    assert (1, 1) == (ended.returncode, len(ended.stderr.splitlines()))
    assert "invalid username-password pair" in ended.stderr
    assert set() == secrets_in(ended.stderr + ended.stdout)


async def test_a_worker_logs_no_password_while_redis_is_down_or_refuses_it(
    locked: Locked, tmp_path: Path
) -> None:
    """It reconnects after the restart, before the password is changed."""
    with workers(1, locked.url(), tmp_path / "fleet") as running:
        await wait_until(running.started, "the worker to start")
        locked.stop()
        await wait_until(lambda: trouble(running, "connect"), "the error")
        locked.start()
        async with connect(locked.url()) as redis:
            await wait_until(lambda: redis.zcard("ff:workers"), "a heartbeat", timeout_s=30)
            await redis.config_set("requirepass", "another")
            await redis.client_kill_filter(_type="normal", skipme=True)
            await wait_until(lambda: trouble(running, "invalid username"), "the refusal", timeout_s=30)
    logged = "".join(path.read_text() for path in (tmp_path / "fleet").glob("*.log"))
    assert set() == secrets_in(logged)


def trouble(running: Workers, message: str) -> bool:
    """Return whether the worker has logged an error of Redis with this text."""
    lines = running.events("redis.trouble") + running.events("redis.refusal")
    return any(message in line["error"].lower() for line in lines)
