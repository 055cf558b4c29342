"""A resolver that the test answers for, in place of the event loop's."""

import socket
from typing import Any

NAME = "origin.example"


class Resolver:
    """Takes the place of loop.getaddrinfo; NAME is at `answers`, in turn, anything else at itself."""

    def __init__(self) -> None:
        self.answers: list[list[str]] = []
        self.asked = 0
        self.error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def __call__(self, host: str, port: int, **_: Any) -> list[Any]:
        """The rows of getaddrinfo."""
        addresses = [host]
        if host == NAME:
            addresses = self.answers[min(self.asked, len(self.answers) - 1)]
            self.asked += 1
        if not addresses:
            raise self.error
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]
