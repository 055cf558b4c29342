"""The check for sockets and files that a test leaks."""

import asyncio
import socket
import tempfile
from pathlib import Path

from tests.support.leaks import OpenResources


def test_an_open_socket_an_open_file_and_a_temporary_file_are_reported(tmp_path: Path) -> None:
    """The report names each one until it is closed or removed."""
    before = OpenResources()
    with socket.socket(), (tmp_path / "open").open("w"), tempfile.NamedTemporaryFile() as temporary:
        left = before.since()

    assert [name for name in left if name.startswith("socket:")]
    assert {str(tmp_path / "open"), temporary.name} <= set(left)
    assert [] == before.since()


def test_sockets_of_an_event_loop_are_not_reported() -> None:
    """A loop closes its own socket pair."""
    before = OpenResources()
    asyncio.run(asyncio.sleep(0))

    assert [] == before.since()
