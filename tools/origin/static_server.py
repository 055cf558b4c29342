"""Serve a folder on many loopback hosts with a third-party server in a child process.

The server is nginx if installed, else Python's http.server.
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

# A line of the access log: end (Unix time), duration, server address, status, path.
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
    """A running server."""

    name: Kind
    base_urls: list[str]
    """One for each host."""
    access_log: Path
    """One line a request; removed at the end of the block."""


@dataclass(frozen=True)
class _Site:
    """The configuration of a server."""

    folder: Path
    """The folder to serve."""
    hosts: list[str]
    port: int
    prefix: Path
    """The folder for the server's own files."""
    bytes_per_s: int = 0
    """The limit of each connection; 0 for none."""

    @property
    def access_log(self) -> Path:
        return self.prefix / "access.log"

    @property
    def errors(self) -> Path:
        return self.prefix / "errors.log"


@contextmanager
def serve_folder(
    folder: Path, hosts: list[str], port: int = 0, kind: Kind | None = None, bytes_per_s: int = 0
) -> Iterator[StaticServer]:
    """Serve the folder on every host at one port, 0 for a free one. kind: None for nginx if installed.

    bytes_per_s: the limit of each connection, which nginx applies; 0 for none.
    """
    kind = kind or ("nginx" if shutil.which("nginx") else "http.server")
    with TemporaryDirectory(prefix="static-server-") as prefix:
        site = _Site(folder.resolve(), hosts, _free_port(hosts, port), Path(prefix), bytes_per_s)
        with _running(_COMMANDS[kind](site), site):
            urls = [f"http://{host}:{site.port}" for host in hosts]
            yield StaticServer(kind, urls, site.access_log)


@contextmanager
def serve_nginx(servers: str, hosts: list[str], prefix: Path) -> Iterator[int]:
    """Run nginx with these `server` blocks, in which {port} is replaced; yield the port.

    prefix: the folder for nginx's own files.
    """
    site = _Site(prefix, hosts, _free_port(hosts, 0), prefix)
    with _running(_nginx_command(site, servers.replace("{port}", str(site.port))), site):
        yield site.port


def _free_port(hosts: list[str], wanted: int) -> int:
    """Return the wanted port, or a free one for 0; raise OSError if the port is in use."""
    port = wanted
    for host in hosts:
        with socket.create_server((host, port)) as probe:
            port = probe.getsockname()[1]
    return port


def _static_nginx(site: _Site) -> list[str]:
    limit = f"limit_rate {site.bytes_per_s}; "
    servers = (f"    server {{ listen {host}:{site.port} backlog=4096; {limit}}}" for host in site.hosts)
    return _nginx_command(site, "\n".join(servers))


def _nginx_command(site: _Site, servers: str) -> list[str]:
    # As root, nginx would otherwise switch to a user that may not read a pytest tmp_path.
    user = "user root;" if os.geteuid() == 0 else ""
    config = NGINX_CONFIG.format(user=user, folder=site.folder, servers=servers)
    (site.prefix / "nginx.conf").write_text(config)
    return ["nginx", "-p", str(site.prefix), "-c", "nginx.conf", "-e", "stderr"]


def _python_command(site: _Site) -> list[str]:
    # Unbuffered, because standard output is the access log.
    return [sys.executable, "-u", __file__, str(site.folder), str(site.port), *site.hosts]


_COMMANDS: dict[Kind, Callable[[_Site], list[str]]] = {
    "nginx": _static_nginx,
    "http.server": _python_command,
}


@contextmanager
def _running(command: list[str], site: _Site) -> Iterator[None]:
    """Run the command during the block, which starts once every host accepts connections."""
    # A session of its own: Ctrl-C does not reach the server, and its children can be killed as a group.
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
        while not _accepts_connections(host, site.port):
            if child.poll() is not None or time.monotonic() > give_up_s:
                raise RuntimeError(
                    f"{host}:{site.port} does not accept connections: {site.errors.read_text()}"
                )
            time.sleep(POLL_S)


def _accepts_connections(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), READY_WITHIN_S):
        return True
    return False


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Terminate the child, then kill the rest of its session."""
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(STOP_WITHIN_S)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


class _Handler(SimpleHTTPRequestHandler):
    """Python's file handler with keep-alive and the log format of nginx."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def parse_request(self) -> bool:
        self.began_s = time.monotonic()
        return super().parse_request()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002 - inherited signature
        took_s = time.monotonic() - self.began_s
        host = self.connection.getsockname()[0]
        sys.stdout.write(f"{time.time():.3f} {took_s:.3f} {host} {int(code)} {self.path}\n")


def _serve_with_python(folder: str, port: str, *hosts: str) -> None:
    """Serve until killed, with a thread for each host and connection."""
    handler = partial(_Handler, directory=folder)
    servers = [ThreadingHTTPServer((host, int(port)), handler) for host in hosts]
    threads = [Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    # Since Python 3.12 no thread can start after the main thread has ended.
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    _serve_with_python(*sys.argv[1:])
