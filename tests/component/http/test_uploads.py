"""Requests that send a body: text, any bytes, or a file of the in folder."""

import asyncio
import base64
import errno
import hashlib
import os
import socket
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fetchfleet import Outcome, Reason
from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.worker.errors import NoBodyFileError, RequestBodyError, UnreadableBodyFileError
from fetchfleet.worker.http import request_body
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.runtime.stats import open_files
from fetchfleet.worker.sink.disk_space import Refusals
from fetchfleet.worker.sink.files.out_folder import OutFolder
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.file_errors import FileFault, fault_of
from tests.component.conftest import Lines, Start, on_both_engines, tuned
from tests.support import left_behind
from tests.support.left_behind import OpenResources
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Origin, Seen

BYTES = bytes(range(256)) * 1000
IMPATIENT = Timeouts(connect_s=5, read_s=30, write_s=0.3, pool_s=5, total_s=60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An in folder, empty."""
    made = tmp_path / "in"
    made.mkdir()
    return made


@pytest.fixture
async def sender(start: Start, folder: Path) -> OneWorker:
    """A worker that may send what is in there."""
    return await start(in_folder=folder, policy={"attempts": 2})


def assert_framed(seen: Seen, body: bytes) -> None:
    """The body came whole, with its length said beforehand."""
    assert seen.body == body
    assert Origin.header(seen, "Content-Length") == str(len(body))
    assert Origin.header(seen, "Transfer-Encoding") is None


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("body", [b"", b"x", BYTES], ids=["empty", "small", "large"])
@on_both_engines
async def test_a_body_arrives_byte_for_byte(
    origin: Origin, sender: OneWorker, folder: Path, method: str, body: bytes
) -> None:
    """From each of the three, never chunked, also where it is empty."""
    (folder / "deep/er").mkdir(parents=True)
    (folder / "deep/er/file").write_bytes(body)
    encoded = base64.b64encode(body).decode()
    ways: list[dict[str, Any]] = [{"body_base64": encoded}, {"body_file": "deep/er/file"}]
    ways += [{"body": body.decode()}] if body.isascii() else [{"body": "é" * 100_000}]

    results = [await sender.one(origin.url(), method=method, **way) for way in ways]

    assert [result.outcome for result in results] == [Outcome.STORED] * 3
    for seen in origin.requests[:2]:
        assert_framed(seen, body)
    assert_framed(origin.requests[2], body if body.isascii() else ("é" * 100_000).encode())
    assert {seen.method for seen in origin.requests} == {method}


@on_both_engines
async def test_a_post_without_a_body_says_so(origin: Origin, worker: OneWorker) -> None:
    """A length of nothing, and no chunks."""
    await worker.one(origin.url(), method="POST")

    assert_framed(origin.requests[0], b"")


@on_both_engines
async def test_a_body_is_sent_again_with_the_next_attempt(
    origin: Origin, sender: OneWorker, folder: Path
) -> None:
    """A PUT that failed begins at the first byte."""
    (folder / "file").write_bytes(BYTES)
    origin.behaviour = o.fail_times(1, 500)

    result = await sender.one(origin.url(), method="PUT", body_file="file")

    assert (result.outcome, result.attempts) == (Outcome.STORED, 2)
    assert [seen.body == BYTES for seen in origin.requests] == [True, True]


async def test_a_file_follows_a_redirect_within_its_origin(
    origin: Origin, other: Origin, sender: OneWorker, folder: Path
) -> None:
    """307 repeats it there, and nowhere else; 303 drops it."""
    (folder / "file").write_bytes(BYTES)
    origin.behaviour = o.by_path(
        {
            "/same": o.redirect("/there", 307),
            "/other": o.redirect(other.url, 308),
            "/see": o.redirect("/there", 303),
            "/there": o.OK,
        }
    )
    put = {"method": "PUT", "body_file": "file"}

    same = await sender.one(origin.url("/same"), **put)
    abroad = await sender.one(origin.url("/other"), **put)
    see = await sender.one(origin.url("/see"), **put)

    assert (same.outcome, see.outcome) == (Outcome.STORED, Outcome.STORED)
    assert (abroad.outcome, abroad.reason) == (Outcome.FAILED, Reason.REDIRECT_REFUSED)
    there = [(seen.method, seen.body) for seen in origin.requests if seen.target == "/there"]
    assert there == [("PUT", BYTES), ("GET", b"")]
    assert not other.requests


def nothing(_: Path) -> None:
    """Nobody has put it there."""


def directory(file: Path) -> None:
    """A folder is no file."""
    file.mkdir()


def pipe(file: Path) -> None:
    """Whoever opens one waits for its writer."""
    os.mkfifo(file)


def unix_socket(file: Path) -> None:
    """It cannot even be opened."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(file))


def link(file: Path) -> None:
    """To a file that is there."""
    file.with_name("real").write_bytes(b"x")
    file.symlink_to("real")


def link_out(file: Path) -> None:
    """To a secret."""
    file.symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    "what", [nothing, directory, pipe, unix_socket, link, link_out], ids=lambda of: of.__name__
)
async def test_what_is_no_file_of_the_folder_is_never_sent(
    origin: Origin, sender: OneWorker, folder: Path, lines: Lines, what: Callable[[Path], None]
) -> None:
    """The fetch ends at once, the host hears nothing, and the log says which file it was."""
    what(folder / "file")

    result = await sender.one(origin.url(), method="PUT", body_file="file")

    assert (result.outcome, result.reason, result.attempts) == (Outcome.FAILED, Reason.NO_BODY_FILE, 1)
    assert not origin.requests
    [line] = [line for line in lines if line["event"] == "fetch.finished"]
    assert "body_file 'file'" in line["note"]


@pytest.mark.parametrize("way", ["file/x", "folder/x", "loop/x"])
async def test_the_way_to_a_file_is_of_folders_only(
    origin: Origin, sender: OneWorker, folder: Path, tmp_path: Path, way: str
) -> None:
    """No link leads out of the folder at any step of it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/x").write_bytes(b"theirs")
    (folder / "file").write_bytes(b"")
    (folder / "folder").symlink_to(tmp_path / "outside")
    (folder / "loop").symlink_to("loop")

    result = await sender.one(origin.url(), method="PUT", body_file=way)

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.NO_BODY_FILE)
    assert not origin.requests


HOSTILE_NAMES = [
    *(
        "../../etc/passwd",
        "../secret",
        "..",
        ".",
        "",
        "/",
        "/etc/passwd",
        "a/../../secret",
        "a/..",
        "a/./file",
    ),
    *(
        "a//file",
        "a/",
        "./file",
        "//etc/passwd",
        "a\\..\\secret",
        "file\0",
        "a/\0/file",
        "a\n",
        ".fetchfleet/x",
    ),
    *("link", "link_to_folder/file", "dangling", "pipe", "a/link/secret", "proc/self/root/etc/passwd"),
    *("a/" * 600 + "x", "x" * 256, "\udcff"),
]


@pytest.mark.parametrize("path", HOSTILE_NAMES)
def test_opening_leads_nowhere_but_below_the_in_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Whatever calls it: each call of the kernel has one plain name, and follows no link."""
    (tmp_path / "secret").write_bytes(b"theirs")
    (folder / "a").mkdir()
    (folder / "a/link").symlink_to(tmp_path)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "link_to_folder").symlink_to(tmp_path)
    (folder / "proc").symlink_to("/proc")
    (folder / "dangling").symlink_to("missing")
    os.mkfifo(folder / "pipe")
    open_ = os.open

    def recorded(name: str | Path, flags: int, **at: Any) -> int:
        if at:
            assert name not in {"", ".", ".."}
            assert not set("/\0") & set(str(name))
            assert flags & os.O_NOFOLLOW
        else:
            assert name == folder
        return open_(name, flags, **at)

    monkeypatch.setattr(os, "open", recorded)
    before = open_files()

    with pytest.raises(NoBodyFileError):
        request_body._open(folder, path)

    assert before == open_files()


def test_a_device_is_no_file() -> None:
    """Nothing is read from it."""
    with pytest.raises(NoBodyFileError, match="no regular file"):
        request_body._open(Path("/dev"), "null")


@pytest.mark.parametrize("swapped", ["a", "file"])
def test_a_name_that_becomes_a_link_during_the_walk_leads_nowhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    """The file opened is the one in the folder that was opened before it, or none."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_bytes(b"theirs")
    (folder / "a").mkdir()
    (folder / "a/file").write_bytes(b"ours")
    open_ = os.open

    def swapping(name: Any, flags: int, **at: Any) -> int:
        opened = open_(name, flags, **at)
        if name == "a":
            moved = folder / "a" if swapped == "a" else folder / "a/file"
            moved.rename(folder / "moved")
            moved.symlink_to(tmp_path / "outside" if swapped == "a" else tmp_path / "outside/file")
        return opened

    monkeypatch.setattr(os, "open", swapping)
    if swapped == "file":
        with pytest.raises(NoBodyFileError):
            request_body._open(folder, "a/file")
        return
    upload = request_body._open(folder, "a/file")
    try:
        assert os.pread(upload._descriptor, 10, 0) == b"ours"
    finally:
        upload.close()


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_an_error_of_one_file_is_final_and_one_of_the_disk_is_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """By the number of the error, as for bodies that are stored; a file that is missing is final as well."""
    open_, error = os.open, OSError(number, os.strerror(number))

    def fails_below(*args: Any, **below: Any) -> int:
        if below:
            raise error
        return open_(*args)

    monkeypatch.setattr(os, "open", fails_below)
    final = fault_of(error) in {FileFault.NAME, FileFault.SIZE, FileFault.PERMISSION}

    with pytest.raises(RequestBodyError, match=r"^body_file 'file': ") as raised:
        request_body._open(folder, "file")

    final = final or number in {errno.ENOENT, errno.ENXIO}
    assert isinstance(raised.value, NoBodyFileError if final else UnreadableBodyFileError)


def test_an_in_folder_that_is_gone_is_no_fault_of_a_file(folder: Path) -> None:
    """It may be a disk that is not mounted: every fetch waits."""
    folder.rmdir()

    with pytest.raises(UnreadableBodyFileError, match="No such file or directory"):
        request_body._open(folder, "file")


async def test_a_worker_without_an_in_folder_says_what_to_do(
    origin: Origin, start: Start, lines: Lines
) -> None:
    """It names the flag; here no other worker may have such a folder."""
    worker = await start(alone=True)
    result = await worker.one(origin.url(), method="PUT", body_file="file")

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.NO_BODY_FILE)
    [line] = [line for line in lines if line["event"] == "fetch.finished"]
    assert "--in" in line["note"]


def cut(file: Path) -> None:
    """There is less of it now."""
    os.truncate(file, 100_000)


def grown(file: Path) -> None:
    """There is more of it now."""
    with file.open("ab") as appending:
        appending.write(b"more")


@pytest.mark.parametrize("change", [cut, grown], ids=lambda change: change.__name__)
@on_both_engines
async def test_a_file_that_changes_while_it_is_sent_fails_the_attempt(
    origin: Origin,
    sender: OneWorker,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
) -> None:
    """No host takes half an old and half a new file for one; the next attempt sends what is there then."""
    file = folder / "file"
    file.write_bytes(b"x" * (2 * request_body.FILE_BLOCK_BYTES))
    pread, changes = os.pread, iter([change])

    def read(descriptor: int, size_bytes: int, at: int) -> bytes:
        block = pread(descriptor, size_bytes, at)
        if at and size_bytes == request_body.FILE_BLOCK_BYTES and (due := next(changes, None)):
            due(file)
        return block

    monkeypatch.setattr(os, "pread", read)

    result = await sender.one(origin.url(), method="PUT", body_file="file")

    assert (result.outcome, result.attempts) == (Outcome.STORED, 2)
    [last] = [seen for seen in origin.requests if seen.body]
    assert_framed(last, file.read_bytes())


async def test_a_post_of_a_file_that_changes_is_not_sent_twice(
    origin: Origin, sender: OneWorker, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host may have acted on what it saw."""
    file = folder / "file"
    file.write_bytes(BYTES)
    pread = os.pread

    def read(descriptor: int, size_bytes: int, at: int) -> bytes:
        block = pread(descriptor, size_bytes, at)
        if len(block) == len(BYTES):
            grown(file)
        return block

    monkeypatch.setattr(os, "pread", read)

    result = await sender.one(origin.url(), method="POST", body_file="file")

    assert (result.outcome, result.reason, result.attempts) == (Outcome.FAILED, Reason.NO_BODY_FILE, 1)
    assert not [seen for seen in origin.requests if seen.body]


@on_both_engines
async def test_a_host_that_does_not_read_ends_by_the_write_timeout(
    start: Start, engine: str, folder: Path
) -> None:
    """A body that nobody takes holds a slot no longer than that."""
    worker = await start(engine=engine, in_folder=folder, policy={"attempts": 1, "timeout": IMPATIENT})
    (folder / "file").touch()
    os.truncate(folder / "file", 64 << 20)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.bind(("127.0.0.14", 0))
        deaf.listen()  # the kernel takes the connection, and nobody reads from it
        port = deaf.getsockname()[1]
        result = await worker.one(f"http://127.0.0.14:{port}/", method="PUT", body_file="file")

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.WRITE_TIMEOUT)


async def test_a_large_file_is_sent_in_blocks(sender: OneWorker, folder: Path) -> None:
    """Memory stays flat: of 64 MiB never more than a few blocks are at hand."""
    size_bytes = 64 << 20
    (folder / "file").touch()
    os.truncate(folder / "file", size_bytes)
    digest, seen_bytes = hashlib.sha256(), 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen_bytes
        await reader.readuntil(b"\r\n\r\n")
        while seen_bytes < size_bytes:
            piece = await reader.read(1 << 16)
            digest.update(piece)
            seen_bytes += len(piece)
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        writer.close()

    tracemalloc.start()
    try:
        async with await asyncio.start_server(count, "127.0.0.15", 0) as server:
            port = server.sockets[0].getsockname()[1]
            before = tracemalloc.get_traced_memory()[0]
            result = await sender.one(f"http://127.0.0.15:{port}/", method="PUT", body_file="file")
            most_bytes = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()

    assert result.outcome is Outcome.STORED
    assert digest.hexdigest() == hashlib.sha256(bytes(size_bytes)).hexdigest()
    assert most_bytes < 16 * request_body.FILE_BLOCK_BYTES


@pytest.mark.parametrize("step", ["open", "pread"])
async def test_a_disk_that_does_not_give_the_file_is_named_and_waited_for(
    origin: Origin, start: Start, folder: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It is not that of the bodies, where nothing is tried for it."""
    (folder / "file").write_bytes(BYTES)
    worker = await start(in_folder=folder, timings=tuned(disk_pause_s=0.02))
    does, failures = getattr(os, step), iter([True])

    def fails_once(file: Any, *how: Any, **named: Any) -> Any:
        if (step == "pread" or file == "file") and next(failures, False):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return does(file, *how, **named)

    monkeypatch.setattr(os, step, fails_once)

    result = await worker.one(origin.url(), method="PUT", body_file="file")

    assert (result.outcome, result.attempts, result.interruptions) == (Outcome.STORED, 1, 1)
    [retry] = [line for line in lines if line["event"] == "fetch.retry"]
    assert (retry["reason"], retry["note"]) == ("disk", "body_file 'file': Input/output error")
    disk = worker.runtime.services.sink.disk
    assert isinstance(disk, OutFolder)
    assert disk.refusals == Refusals()


@pytest.mark.parametrize("step", ["open", "pread"])
async def test_a_file_is_closed_when_its_fetch_is_cut_short(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Not before the step that is under way is over: its number may be another file's by then."""
    (folder / "file").write_bytes(BYTES)
    things, begun, go_on, does = OpenResources(), threading.Event(), threading.Event(), getattr(os, step)

    def stuck(*how: Any, **named: Any) -> Any:
        done = does(*how, **named)
        begun.set()
        go_on.wait()
        return done

    async def send() -> None:
        request = Hop("PUT", "http://a.example/", body_file="file")
        file = await request_body.open_content(request, folder)
        assert file is not None
        with closing(file):
            assert [block async for block in file] == [BYTES]

    monkeypatch.setattr(os, step, stuck)
    sending = asyncio.create_task(send())
    try:
        await wait_until(begun.is_set, "the step")
        await aio.end(sending)
        assert things.since()
    finally:
        go_on.set()

    await wait_until(lambda: not left_behind.tasks(), "the step's end")
    await wait_until(lambda: not things.since(), "a closed file")


async def test_a_stop_in_the_middle_of_a_body_closes_its_file(start: Start, folder: Path) -> None:
    """The worker hands the fetch back, and nothing of it stays open."""
    worker = await start(in_folder=folder, grace_s=0.0)
    (folder / "file").touch()
    os.truncate(folder / "file", 64 << 20)
    things, came = OpenResources(), asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        came.set()
        await over.wait()
        writer.transport.abort()

    over = asyncio.Event()
    async with await asyncio.start_server(deaf, "127.0.0.15", 0) as server:
        url = f"http://127.0.0.15:{server.sockets[0].getsockname()[1]}/"
        await worker.submit([{"url": url, "method": "PUT", "body_file": "file"}])
        await wait_until(came.is_set, "the request")
        await worker.stop()
        over.set()

    assert not [left for left in things.since() if left.endswith("/in/file")]
