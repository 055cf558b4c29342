"""A folder served on many loopback hosts, by a server nobody here wrote.

nginx where it is installed, else Python's own http.server. Either way a child process, which is
ready when the block begins and gone when it ends.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Literal

Kind = Literal["nginx", "http.server"]
READY_WITHIN_S = 10.0
STOP_WITHIN_S = 5.0
POLL_S = 0.01

# A line of the access log: when it ended (Unix time), how long it took, by whom, what.
NGINX_CONFIG = """
{user}
daemon off;
worker_processes 1;
pid nginx.pid;
events {{ worker_connections 8192; }}
http {{
    log_format seen '$msec $request_time $server_addr $status $uri';
    access_log access.log seen;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    sendfile on;
    tcp_nopush on;
    keepalive_timeout 60s;
    keepalive_requests 1000000;
    root "{folder}";
{servers}
}}
"""


@dataclass(frozen=True)
class StaticServer:
    """A running server; the log, one line a request, is gone with it."""

    name: Kind
    base_urls: list[str]
    access_log: Path


@dataclass(frozen=True)
class _Site:
    """What to serve, where, and a folder for the server's own files."""

    folder: Path
    hosts: list[str]
    port: int
    prefix: Path

    @property
    def access_log(self) -> Path:
        return self.prefix / "access.log"

    @property
    def errors(self) -> Path:
        return self.prefix / "errors.log"


@contextmanager
def serve_folder(
    folder: Path, hosts: list[str], port: int = 0, kind: Kind | None = None
) -> Iterator[StaticServer]:
    """Serves the folder on every host at one port; 0 picks a free one, no kind the best there."""
    kind = kind or ("nginx" if shutil.which("nginx") else "http.server")
    with TemporaryDirectory(prefix="static-server-") as prefix:
        site = _Site(folder.resolve(), hosts, _free_port(hosts, port), Path(prefix))
        with _running(_COMMANDS[kind](site), site):
            urls = [f"http://{host}:{site.port}" for host in hosts]
            yield StaticServer(kind, urls, site.access_log)


@contextmanager
def serve_nginx(servers: str, hosts: list[str], prefix: Path) -> Iterator[int]:
    """The port of an nginx with `servers` in its http block, {port} filled in; its files are in prefix."""
    site = _Site(prefix, hosts, _free_port(hosts, 0), prefix)
    with _running(_nginx_command(site, servers.replace("{port}", str(site.port))), site):
        yield site.port


def _free_port(hosts: list[str], wanted: int) -> int:
    """The wanted port, or any; OSError when another server, which would look ready, has it."""
    port = wanted
    for host in hosts:
        with socket.create_server((host, port)) as probe:
            port = probe.getsockname()[1]
    return port


def _static_nginx(site: _Site) -> list[str]:
    servers = (f"    server {{ listen {host}:{site.port} backlog=4096; }}" for host in site.hosts)
    return _nginx_command(site, "\n".join(servers))


def _nginx_command(site: _Site, servers: str) -> list[str]:
    # Started by root, nginx would else serve as a user who may not read a pytest tmp_path.
    user = "user root;" if os.geteuid() == 0 else ""
    config = NGINX_CONFIG.format(user=user, folder=site.folder, servers=servers)
    (site.prefix / "nginx.conf").write_text(config)
    return ["nginx", "-p", str(site.prefix), "-c", "nginx.conf", "-e", "stderr"]


def _python_command(site: _Site) -> list[str]:
    # Unbuffered, for its standard output is the access log.
    return [sys.executable, "-u", __file__, str(site.folder), str(site.port), *site.hosts]


_COMMANDS: dict[Kind, Callable[[_Site], list[str]]] = {
    "nginx": _static_nginx,
    "http.server": _python_command,
}


@contextmanager
def _running(command: list[str], site: _Site) -> Iterator[None]:
    """The command, from when it takes connections on every host, until it has ended."""
    # A session of its own: a Ctrl-C is ours to handle, and its children end with it.
    with site.access_log.open("ab") as log, site.errors.open("ab") as errors:
        child = subprocess.Popen(command, stdout=log, stderr=errors, start_new_session=True)
    try:
        _await_ready(child, site)
        yield
    finally:
        _stop(child)


def _await_ready(child: subprocess.Popen[bytes], site: _Site) -> None:
    give_up_s = time.monotonic() + READY_WITHIN_S
    for host in site.hosts:
        while not _takes_connections(host, site.port):
            if child.poll() is not None or time.monotonic() > give_up_s:
                raise RuntimeError(f"{host}:{site.port} is not served: {site.errors.read_text()}")
            time.sleep(POLL_S)


def _takes_connections(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), READY_WITHIN_S):
        return True
    return False


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Asks the child to end, then ends whatever is left of its session."""
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(STOP_WITHIN_S)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


class _Handler(SimpleHTTPRequestHandler):
    """Python's own file handler, kept alive between requests, with the log line of nginx."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def parse_request(self) -> bool:
        self.began_s = time.monotonic()
        return super().parse_request()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002 - theirs
        took_s = time.monotonic() - self.began_s
        host = self.connection.getsockname()[0]
        sys.stdout.write(f"{time.time():.3f} {took_s:.3f} {host} {int(code)} {self.path}\n")


def _serve_with_python(folder: str, port: str, *hosts: str) -> None:
    """Serves until killed, with a thread a host and a thread a connection."""
    handler = partial(_Handler, directory=folder)
    servers = [ThreadingHTTPServer((host, int(port)), handler) for host in hosts]
    threads = [Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    # Python 3.12 starts no thread once the main one has ended.
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    _serve_with_python(*sys.argv[1:])
