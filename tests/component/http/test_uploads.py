"""Requests with a body: text, arbitrary bytes, or a file of the in folder."""

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
from tests.support import leaks
from tests.support.leaks import OpenResources
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Origin, Seen

BYTES = bytes(range(256)) * 1000
IMPATIENT = Timeouts(connect_s=5, read_s=30, write_s=0.3, pool_s=5, total_s=60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an empty in folder."""
    made = tmp_path / "in"
    made.mkdir()
    return made


@pytest.fixture
async def sender(start: Start, folder: Path) -> OneWorker:
    """Return a worker that may send the files of the in folder."""
    return await start(in_folder=folder, policy={"attempts": 2})


def assert_framed(seen: Seen, body: bytes) -> None:
    """Check that the body arrived whole, with its Content-Length and not in chunks."""
    assert seen.body == body
    assert Origin.header(seen, "Content-Length") == str(len(body))
    assert Origin.header(seen, "Transfer-Encoding") is None


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("body", [b"", b"x", BYTES], ids=["empty", "small", "large"])
@on_both_engines
async def test_a_body_arrives_byte_for_byte(
    origin: Origin, sender: OneWorker, folder: Path, method: str, body: bytes
) -> None:
    """Text, base64 and a file are never sent in chunks, even if empty."""
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
async def test_a_post_without_a_body_has_a_content_length_of_0(origin: Origin, worker: OneWorker) -> None:
    """It has no Transfer-Encoding."""
    await worker.one(origin.url(), method="POST")

    assert_framed(origin.requests[0], b"")


@on_both_engines
async def test_a_body_is_sent_again_with_the_next_attempt(
    origin: Origin, sender: OneWorker, folder: Path
) -> None:
    """The second PUT begins at the first byte."""
    (folder / "file").write_bytes(BYTES)
    origin.behaviour = o.fail_times(1, 500)

    result = await sender.one(origin.url(), method="PUT", body_file="file")

    assert (result.outcome, result.attempts) == (Outcome.STORED, 2)
    assert [seen.body == BYTES for seen in origin.requests] == [True, True]


async def test_a_file_follows_a_redirect_within_its_origin(
    origin: Origin, other: Origin, sender: OneWorker, folder: Path
) -> None:
    """307 repeats the file within the origin, 308 to another origin is refused, and 303 drops the file."""
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
    """Create no file."""


def directory(file: Path) -> None:
    """Create a directory."""
    file.mkdir()


def pipe(file: Path) -> None:
    """Create a named pipe: opening one can wait for its writer."""
    os.mkfifo(file)


def unix_socket(file: Path) -> None:
    """Create a socket, which cannot be opened."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(file))


def link(file: Path) -> None:
    """Create a link to a file of the folder."""
    file.with_name("real").write_bytes(b"x")
    file.symlink_to("real")


def link_out(file: Path) -> None:
    """Create a link to a file outside the folder."""
    file.symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    "what", [nothing, directory, pipe, unix_socket, link, link_out], ids=lambda of: of.__name__
)
async def test_only_regular_files_of_the_in_folder_are_sent(
    origin: Origin, sender: OneWorker, folder: Path, lines: Lines, what: Callable[[Path], None]
) -> None:
    """Otherwise the fetch fails at once, the host receives no request, and the log names the file."""
    what(folder / "file")

    result = await sender.one(origin.url(), method="PUT", body_file="file")

    assert (result.outcome, result.reason, result.attempts) == (Outcome.FAILED, Reason.NO_BODY_FILE, 1)
    assert not origin.requests
    [line] = [line for line in lines if line["event"] == "fetch.finished"]
    assert "body_file 'file'" in line["note"]


@pytest.mark.parametrize("way", ["file/x", "folder/x", "loop/x"])
async def test_each_step_to_a_body_file_must_be_a_directory(
    origin: Origin, sender: OneWorker, folder: Path, tmp_path: Path, way: str
) -> None:
    """A link at any step is refused, so none leads out of the folder."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/x").write_bytes(b"outside")
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
def test_opening_never_leaves_the_in_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Each system call has one plain name and follows no link, whatever path is passed in."""
    (tmp_path / "secret").write_bytes(b"outside")
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


def test_a_device_is_refused() -> None:
    """It is not a regular file."""
    with pytest.raises(NoBodyFileError, match="not a regular file"):
        request_body._open(Path("/dev"), "null")


@pytest.mark.parametrize("swapped", ["a", "file"])
def test_a_name_that_becomes_a_link_during_the_walk_is_not_followed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    """The file is opened in the directory that was opened before it, or not at all."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_bytes(b"outside")
    (folder / "a").mkdir()
    (folder / "a/file").write_bytes(b"inside")
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
        assert os.pread(upload._descriptor, 10, 0) == b"inside"
    finally:
        upload.close()


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_an_error_of_one_file_is_final_and_an_error_of_the_disk_is_retried(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The error number decides, as for stored bodies. A missing file is final as well."""
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


def test_a_missing_in_folder_is_an_error_of_the_disk(folder: Path) -> None:
    """The disk may not be mounted, so every fetch waits."""
    folder.rmdir()

    with pytest.raises(UnreadableBodyFileError, match="No such file or directory"):
        request_body._open(folder, "file")


async def test_a_worker_without_an_in_folder_names_the_flag(
    origin: Origin, start: Start, lines: Lines
) -> None:
    """The worker is alone, so no other worker can have such a folder."""
    worker = await start(alone=True)
    result = await worker.one(origin.url(), method="PUT", body_file="file")

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.NO_BODY_FILE)
    [line] = [line for line in lines if line["event"] == "fetch.finished"]
    assert "--in" in line["note"]


def cut(file: Path) -> None:
    """Truncate the file."""
    os.truncate(file, 100_000)


def grown(file: Path) -> None:
    """Append to the file."""
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
    """A host never gets a mix of old and new as a whole body. The next attempt sends the changed file."""
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


async def test_a_post_of_a_file_that_changes_is_not_repeated(
    origin: Origin, sender: OneWorker, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host may have processed the part that it received."""
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
async def test_a_host_that_does_not_read_fails_the_fetch_with_write_timeout(
    start: Start, engine: str, folder: Path
) -> None:
    """The kernel of the host accepts the connection and fills its buffers."""
    worker = await start(engine=engine, in_folder=folder, policy={"attempts": 1, "timeout": IMPATIENT})
    (folder / "file").touch()
    os.truncate(folder / "file", 64 << 20)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.bind(("127.0.0.14", 0))
        deaf.listen()
        port = deaf.getsockname()[1]
        result = await worker.one(f"http://127.0.0.14:{port}/", method="PUT", body_file="file")

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.WRITE_TIMEOUT)


async def test_a_large_file_is_sent_in_blocks(sender: OneWorker, folder: Path) -> None:
    """Memory stays flat: a few blocks of the 64 MiB are in memory at a time."""
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
async def test_a_disk_error_of_a_body_file_is_named_and_charges_no_attempt(
    origin: Origin, start: Start, folder: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The disk of the stored bodies counts no refusal."""
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
async def test_the_file_of_a_cancelled_fetch_is_closed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The close waits for the running system call, which must not act on a reused descriptor."""
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

    await wait_until(lambda: not leaks.tasks(), "the step's end")
    await wait_until(lambda: not things.since(), "a closed file")


async def test_a_stop_during_an_upload_closes_the_file(start: Start, folder: Path) -> None:
    """The grace period is zero."""
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

    # A read in a thread may be the last to end; it closes the file.
    await wait_until(
        lambda: not [left for left in things.since() if left.endswith("/in/file")], "a closed file"
    )
