"""An HTTPS server in a thread, with blocking sockets: what it says and what it hears is in this order.

asyncio's TLS hangs up without the alert that says why; this one lets OpenSSL speak to the socket itself.
"""

import re
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

PATIENCE_S = 10.0
"""No wait of its is longer: a test that went wrong ends all the same."""

Answer = Callable[[ssl.SSLSocket, bytes], None]


def ok(line: ssl.SSLSocket, request: bytes) -> None:
    """Two bytes."""
    line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def redirect(location: str) -> Answer:
    """Elsewhere."""
    head = f"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: {location}\r\n\r\n".encode()
    return lambda line, _: line.sendall(head)


def context(cert: Any, *, client_ca: Any = None, must: bool = True) -> ssl.SSLContext:
    """What a server with that certificate speaks by; client_ca: it asks clients for one of this CA's."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(*cert)
    if client_ca is not None:
        made.load_verify_locations(client_ca)
        made.verify_mode = ssl.CERT_REQUIRED if must else ssl.CERT_OPTIONAL
    return made


class TlsServer:
    """Answers one connection after the other, one request in each, and closes it.

    deaf: so many connections at first are taken and never spoken to. requests: what came through a handshake;
    shown: the subject that each client of these showed, None for none; refused: why handshakes failed.
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
        self._thread.join(PATIENCE_S)
        self._listening.close()
        for line in self._left_alone:
            line.close()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                line, _ = self._listening.accept()
                self.connections += 1
                line.settimeout(PATIENCE_S)
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
            came = line.recv(65536)
            if not came:
                return
            request += came
        self.requests.append(request)
        shown: Any = line.getpeercert() or {}
        names = [value for part in shown.get("subject", ()) for key, value in part if key == "commonName"]
        self.shown.append(names[0] if names else None)
        self.answer(line, request)


def _is_whole(request: bytes) -> bool:
    """Head and body: who hangs up on what it has not read hangs up by a reset."""
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    return bool(end) and len(body) >= int(length[1] if length else 0)


def _until_gone(line: socket.socket) -> None:
    """The client reads our alert before it hears that we are gone."""
    with line, suppress(OSError):
        line.settimeout(PATIENCE_S)
        line.shutdown(socket.SHUT_WR)
        while line.recv(65536):
            pass
