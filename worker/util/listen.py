"""Listening on an address that a user gives as HOST:PORT."""

import re
import socket

BACKLOG = 128
"""The connections that the kernel accepts before the server does."""

_ADDRESS = r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})"


def host_and_port(text: str, option: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT; an IPv6 address is in brackets.

    Raises ValueError with a remedy. option: the name of the option in the message.
    """
    match = re.fullmatch(_ADDRESS, text)
    if match is None or not int(match["port"]) < 1 << 16:
        raise ValueError(f"{option} {text}: write it like 127.0.0.1:8080 or [::1]:8080")
    return match["v6"] or match["host"], int(match["port"])


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises OSError, for example if the port is in use."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening
