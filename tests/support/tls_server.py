"""An HTTPS server in a thread, with blocking sockets.

asyncio's TLS closes a connection without sending the TLS alert. With blocking sockets OpenSSL sends it.
"""

import re
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

TIMEOUT_S = 10.0
"""The maximum wait, so that a failing test ends."""

Respond = Callable[[ssl.SSLSocket, bytes], None]


def ok(connection: ssl.SSLSocket, request: bytes) -> None:
    """Respond with 200 and two bytes."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def redirect(location: str) -> Respond:
    """Return a function that responds with a redirect to this location."""
    head = f"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: {location}\r\n\r\n".encode()
    return lambda connection, _: connection.sendall(head)


def context(cert: Any, *, client_ca: Any = None, required: bool = True) -> ssl.SSLContext:
    """Return the TLS context of a server with this certificate.

    client_ca: the CA of client certificates, which are then requested, or required.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(*cert)
    if client_ca is not None:
        made.load_verify_locations(client_ca)
        made.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return made


class TlsServer:
    """Serves one connection after the other, with one request in each.

    It accepts and ignores the first `ignored` connections.
    """

    def __init__(self, host: str, tls: ssl.SSLContext, respond: Respond = ok, *, ignored: int = 0) -> None:
        self.requests: list[bytes] = []
        """The requests that arrived after a handshake."""
        self.client_names: list[str | None] = []
        """The common name of the client certificate of each request, None without one."""
        self.handshake_errors: list[str] = []
        self.connections = 0
        self.respond = respond
        self._tls = tls
        self._ignored = ignored
        self._ignored_connections: list[socket.socket] = []
        self._listener = socket.create_server((host, 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"https://{host}:{self.port}/"
        self._thread = threading.Thread(target=self._run, name="tls server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # ends the thread's accept()
        self._thread.join(TIMEOUT_S)
        self._listener.close()
        for connection in self._ignored_connections:
            connection.close()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                connection.settimeout(TIMEOUT_S)
                if self.connections <= self._ignored:
                    self._ignored_connections.append(connection)
                else:
                    self._serve(connection)

    def _serve(self, tcp: socket.socket) -> None:
        connection = self._tls.wrap_socket(tcp, server_side=True, do_handshake_on_connect=False)
        with connection, suppress(TimeoutError, ConnectionError):
            try:
                connection.do_handshake()
            except ssl.SSLError as error:
                self.handshake_errors.append(error.reason or str(error))
                _wait_for_close(socket.socket(fileno=connection.detach()))
            else:
                self._serve_one(connection)

    def _serve_one(self, connection: ssl.SSLSocket) -> None:
        request = b""
        while not _is_complete(request):
            received = connection.recv(65536)
            if not received:
                return
            request += received
        self.requests.append(request)
        cert: Any = connection.getpeercert() or {}
        names = [value for part in cert.get("subject", ()) for key, value in part if key == "commonName"]
        self.client_names.append(names[0] if names else None)
        self.respond(connection, request)


def _is_complete(request: bytes) -> bool:
    """Return whether header and body are complete: closing a socket with unread data resets it."""
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    return bool(end) and len(body) >= int(length[1] if length else 0)


def _wait_for_close(tcp: socket.socket) -> None:
    """Wait for the client to close, so that it reads the alert before the end of the connection."""
    with tcp, suppress(OSError):
        tcp.settimeout(TIMEOUT_S)
        tcp.shutdown(socket.SHUT_WR)
        while tcp.recv(65536):
            pass
