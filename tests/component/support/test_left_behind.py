"""The fixture that finds what a test leaves behind finds it."""

import asyncio
import socket
import tempfile
from pathlib import Path

from tests.support.left_behind import OpenResources


def test_an_open_socket_an_open_file_and_a_temporary_one_are_found(tmp_path: Path) -> None:
    """Each by its name, until it is closed or gone."""
    before = OpenResources()
    with socket.socket(), (tmp_path / "open").open("w"), tempfile.NamedTemporaryFile() as temporary:
        left = before.since()

    assert [name for name in left if name.startswith("socket:")]
    assert {str(tmp_path / "open"), temporary.name} <= set(left)
    assert [] == before.since()


def test_what_a_loop_has_open_for_itself_is_not_held_against_a_test() -> None:
    """Its own pair of sockets goes with it."""
    before = OpenResources()
    asyncio.run(asyncio.sleep(0))

    assert [] == before.since()
