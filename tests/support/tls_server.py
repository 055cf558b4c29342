"""An HTTPS server in a thread, with blocking sockets.

asyncio's TLS closes a connection without sending the alert; here OpenSSL writes to the socket itself.
"""

import re
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

TIMEOUT_S = 10.0
"""The longest wait, so that a failing test ends."""

Answer = Callable[[ssl.SSLSocket, bytes], None]


def ok(line: ssl.SSLSocket, request: bytes) -> None:
    """Respond with 200 and two bytes."""
    line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def redirect(location: str) -> Answer:
    """Return a redirect to this location."""
    head = f"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: {location}\r\n\r\n".encode()
    return lambda line, _: line.sendall(head)


def context(cert: Any, *, client_ca: Any = None, must: bool = True) -> ssl.SSLContext:
    """Return the context of a server with this certificate. client_ca: request client certificates of it."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(*cert)
    if client_ca is not None:
        made.load_verify_locations(client_ca)
        made.verify_mode = ssl.CERT_REQUIRED if must else ssl.CERT_OPTIONAL
    return made


class TlsServer:
    """Serves one connection after the other, with one request in each.

    deaf: how many connections to accept and ignore first. requests: received after a handshake. shown: the
    subject of each client certificate, None without one. refused: why handshakes failed.
    """

    def __init__(self, host: str, spoken: ssl.SSLContext, answer: Answer = ok, *, deaf: int = 0) -> None:
        self.requests: list[bytes] = []
        self.shown: list[str | None] = []
        self.refused: list[str] = []
        self.connections = 0
        self.answer = answer
        self._spoken = spoken
        self._deaf = deaf
        self._left_alone: list[socket.socket] = []
        self._listening = socket.create_server((host, 0))
        self.port = int(self._listening.getsockname()[1])
        self.url = f"https://{host}:{self.port}/"
        self._thread = threading.Thread(target=self._run, name="tls server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join(TIMEOUT_S)
        self._listening.close()
        for line in self._left_alone:
            line.close()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                line, _ = self._listening.accept()
                self.connections += 1
                line.settimeout(TIMEOUT_S)
                if self.connections <= self._deaf:
                    self._left_alone.append(line)
                else:
                    self._serve(line)

    def _serve(self, line: socket.socket) -> None:
        spoken = self._spoken.wrap_socket(line, server_side=True, do_handshake_on_connect=False)
        with spoken, suppress(TimeoutError, ConnectionError):
            try:
                spoken.do_handshake()
            except ssl.SSLError as error:
                self.refused.append(error.reason or str(error))
                _until_gone(socket.socket(fileno=spoken.detach()))
            else:
                self._serve_one(spoken)

    def _serve_one(self, line: ssl.SSLSocket) -> None:
        request = b""
        while not _is_whole(request):
            received = line.recv(65536)
            if not received:
                return
            request += received
        self.requests.append(request)
        shown: Any = line.getpeercert() or {}
        names = [value for part in shown.get("subject", ()) for key, value in part if key == "commonName"]
        self.shown.append(names[0] if names else None)
        self.answer(line, request)


def _is_whole(request: bytes) -> bool:
    """Return whether header and body are complete: closing a socket with unread data resets it."""
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    return bool(end) and len(body) >= int(length[1] if length else 0)


def _until_gone(line: socket.socket) -> None:
    """Wait for the client to close, so that it reads the alert before the end of the connection."""
    with line, suppress(OSError):
        line.settimeout(TIMEOUT_S)
        line.shutdown(socket.SHUT_WR)
        while line.recv(65536):
            pass
