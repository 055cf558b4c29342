"""Hanging up by a mark: those connections and no others."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from fetchfleet.worker.http.reqwest.socket_marks import CAN_HANG_UP, hang_up, new_mark_ms

pytestmark = pytest.mark.skipif(not CAN_HANG_UP, reason="only Linux lists a process's own files so")

HOST = "127.0.71.5"


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """Takes connections."""
    with socket.create_server((HOST, 0)) as server:
        yield server


def marked(mark_ms: int) -> socket.socket:
    """A connection to be, with this mark."""
    line = socket.socket()
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, mark_ms)
    return line


def test_only_the_connections_with_the_mark_are_shut(listening: socket.socket) -> None:
    """The other end reads its end; siblings with another mark, or none, live on."""
    ours, other = new_mark_ms(), new_mark_ms()
    with ExitStack() as stack:
        lines = [stack.enter_context(marked(mark_ms)) for mark_ms in (ours, other, 0)]
        far = []
        for line in lines:
            line.connect(listening.getsockname())
            far.append(stack.enter_context(listening.accept()[0]))
        assert hang_up(ours) == 1

        far[0].settimeout(5)
        assert far[0].recv(1) == b""
        for line, end in zip(lines[1:], far[1:], strict=True):
            line.sendall(b"x")
            assert end.recv(1) == b"x"


def test_a_connection_that_is_being_made_is_given_up() -> None:
    """Its host may be one that never answers."""
    with socket.socket() as full, ExitStack() as stack:
        full.bind((HOST, 0))
        full.listen(0)
        for _ in range(3):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)  # noqa: FBT003 theirs
            filling.connect_ex(full.getsockname())
        mark_ms = new_mark_ms()
        line = stack.enter_context(marked(mark_ms))
        line.setblocking(False)  # noqa: FBT003 theirs
        line.connect_ex(full.getsockname())

        assert hang_up(mark_ms) == 1
        with pytest.raises(OSError, match=r"reset|refused|not connected"):
            line.getpeername()


def test_looking_leaves_no_file_open(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever kinds there are."""
    with (tmp_path_factory.mktemp("files") / "file").open("w"), socket.socket(socket.AF_UNIX):
        before = os.listdir("/proc/self/fd")  # noqa: PTH208 their names are what is compared
        hang_up(new_mark_ms())

        assert os.listdir("/proc/self/fd") == before  # noqa: PTH208
