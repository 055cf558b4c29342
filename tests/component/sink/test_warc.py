"""The WARC sink: warcio reads the records of bodies as they were sent, and results point at them."""

import asyncio
import errno
import gzip
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fetchfleet import Fetch, Outcome, Reason
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.sink.files import open_file
from fetchfleet.worker.sink.files.buffered_body import BLOCK_BYTES
from fetchfleet.worker.sink.files.directory import Directory
from fetchfleet.worker.sink.files.out_folder import OutFolder
from fetchfleet.worker.sink.warc import recovery, segment
from fetchfleet.worker.sink.warc.record_writer import RecordWriter
from fetchfleet.worker.sink.warc.records import FoundRecord, complete_records
from fetchfleet.worker.sink.warc.recovery import recover
from fetchfleet.worker.sink.warc.segment import Segment
from tests.component.conftest import HOST, Lines, Start, on_both_engines, tuned
from tests.support.waiting import wait_until
from tests.support.warc import check_indexes, plain, read, record_of, segments
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin import http2
from tools.origin.certificates import HAS_OPENSSL, Authority
from tools.origin.http2 import Http2Origin, server_tls
from tools.origin.server import Behaviour, Exchange, Origin

HTTP2_HOST = "127.0.203.1"

Left = Callable[[bytes], dict[str, bytes]]

RANDOM = Random(1).randbytes(50_000)
LARGE = b"0123456789abcdef" * (3 * BLOCK_BYTES // 16) + b"odd"


both_compressions = pytest.mark.parametrize("compression", ["gzip", "none"], indirect=True)
"""Runs a test with compressed records, the default, and without."""


@pytest.fixture
def compression(request: pytest.FixtureRequest) -> str:
    """The compression of records."""
    return str(getattr(request, "param", "gzip"))


@pytest.fixture
def start(start: Start, compression: str) -> Start:
    """A function that starts workers with this compression."""
    return partial(start, warc_compression=compression)


@pytest.fixture
async def worker(start: Start) -> OneWorker:
    """Start a worker that writes WARC segments."""
    return await start(sink="warc")


async def odd(x: Exchange) -> None:
    """Send an unusual but valid response header."""
    body = b"\r\n\r\nWARC/1.1\r\n"
    head = b"HTTP/1.1 299 It  Is \xe4 Phrase\r\nX-oDD: \xfc\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\n"
    await x.send(head + b"Empty:\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


@both_compressions
@pytest.mark.parametrize(
    ("behaviour", "body"),
    [
        (o.ok(bytes(range(256))), bytes(range(256))),
        (o.ok(b""), b""),
        (o.status(204), b""),
        (o.chunked([b"one ", b"two ", b"x" * 100]), b"one two " + b"x" * 100),
        (o.ok(gzip.compress(b"as sent"), [("Content-Encoding", "gzip")]), gzip.compress(b"as sent")),
        (o.unframed, b"until the end"),
        (odd, b"\r\n\r\nWARC/1.1\r\n"),
        (o.ok(LARGE), LARGE),
        (o.chunked([LARGE, b"more"]), LARGE + b"more"),
    ],
    ids=["plain", "empty", "204", "chunked", "gzip", "no-length", "odd", "large", "large-chunked"],
)
@on_both_engines
async def test_a_body_is_recorded_byte_for_byte(
    origin: Origin, worker: OneWorker, behaviour: Behaviour, body: bytes
) -> None:
    """The result's offset and length lead to the record. warcio agrees with every digest."""
    origin.behaviour = behaviour

    result = await worker.one(origin.url("/a?b=c"))
    record = record_of(worker.out, result)

    assert (result.outcome, result.reason, result.attempts) == (Outcome.STORED, None, 1)
    assert (record.kind, record.payload) == ("response", body)
    assert (result.bytes, result.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    assert record.field("WARC-Target-URI") == origin.url("/a?b=c")
    assert record.field("WARC-IP-Address") == HOST
    assert record.field("Fetchfleet-ID") == result.id
    assert record.field("Content-Type") == "application/http;msgtype=response"
    assert not worker.parts()


@both_compressions
@on_both_engines
async def test_a_response_header_is_recorded_byte_for_byte(origin: Origin, worker: OneWorker) -> None:
    """Order, case and repetition of the fields are kept, and so is the status line."""
    origin.behaviour = odd

    result = await worker.one(origin.url())
    there = plain(segments(worker.out)[str(result.path)])

    assert (
        b"HTTP/1.1 299 It  Is \xe4 Phrase\r\nX-oDD: \xfc\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\n" in there
    )


async def test_chunks_are_joined_and_transfer_encoding_is_renamed(origin: Origin, worker: OneWorker) -> None:
    """A reader would otherwise look for chunks in the joined body."""
    origin.behaviour = o.chunked([b"5\r\n", b"0\r\n"])

    record = record_of(worker.out, await worker.one(origin.url()))

    assert record.payload == b"5\r\n0\r\n"
    assert record.http.get_header("Transfer-Encoding") is None
    assert record.http.get_header("X-Orig-Transfer-Encoding") == "chunked"


@both_compressions
@on_both_engines
async def test_the_request_is_recorded_beside_its_response(origin: Origin, worker: OneWorker) -> None:
    """Request line, fields and body are those that the host received. Each record names the other."""
    fetch = Fetch(url=origin.url("/p"), method="POST", body="sent", headers={"X-Mine": "yes"})
    [result] = await worker.results([fetch])

    [info, request, response] = read(segments(worker.out)[str(result.path)])
    [seen] = origin.requests

    assert [info.kind, request.kind, response.kind] == ["warcinfo", "request", "response"]
    assert (request.http.protocol, request.http.statusline) == ("POST", "/p HTTP/1.1")
    assert [(name.lower(), value) for name, value in request.http.headers] == list(seen.headers)
    assert ("X-Mine", "yes") in request.http.headers
    assert request.payload == seen.body == b"sent"
    assert request.field("WARC-Concurrent-To") == response.field("WARC-Record-ID")
    assert response.field("WARC-Concurrent-To") == request.field("WARC-Record-ID")


@on_both_engines
async def test_a_response_to_head_is_recorded_without_a_body(origin: Origin, worker: OneWorker) -> None:
    """Its Content-Length describes a body that was not sent."""
    origin.behaviour = o.ok(b"not sent")

    result = await worker.one(origin.url(), method="HEAD")
    record = record_of(worker.out, result)

    assert (result.outcome, result.bytes, result.sha256) == (Outcome.STORED, 0, None)
    assert (record.http.get_header("Content-Length"), record.payload) == ("8", b"")


async def test_the_last_exchange_of_a_redirect_is_recorded(origin: Origin, worker: OneWorker) -> None:
    """The record has the last request and response, under their own URL."""
    origin.behaviour = o.by_path({"/a": o.redirect("/b"), "/b": o.ok(b"there")})

    result = await worker.one(origin.url("/a"))
    kinds = [record.kind for record in read(segments(worker.out)[str(result.path)])]

    assert kinds == ["warcinfo", "request", "response"]
    assert record_of(worker.out, result).field("WARC-Target-URI") == origin.url("/b")


@pytest.mark.parametrize("size", [10, len(LARGE)], ids=["small", "large"])
@pytest.mark.parametrize(
    ("behaviour", "fields", "reason"),
    [
        (lambda body: o.truncated(body, len(body) + 1), {}, Reason.TRUNCATED),
        (o.ok, {"sha256": "0" * 64}, Reason.DIGEST_MISMATCH),
        (o.ok, {"max_bytes": 5}, Reason.TOO_LARGE),
        (o.ok, {"lines": True}, Reason.BAD_LINE),
        (lambda body: o.status(404, body=body), {}, Reason.HTTP_STATUS),
    ],
    ids=["truncated", "sha256", "max_bytes", "lines", "404"],
)
async def test_a_body_that_fails_a_check_is_not_recorded(
    origin: Origin, start: Start, behaviour: Any, fields: dict[str, Any], reason: Reason, size: int
) -> None:
    """The checks are those of the file sink. A failed body leaves no record and no partial file."""
    worker = await start(sink="warc", policy={"attempts": 1})
    origin.behaviour = behaviour(LARGE[:size])

    result = await worker.one(origin.url(), **fields)

    assert (result.outcome, result.reason) == (Outcome.FAILED, reason)
    assert (result.path, result.offset, result.length) == (None, None, None)
    assert not segments(worker.out)
    assert not worker.parts()


async def test_lines_are_counted_in_recorded_bodies(origin: Origin, worker: OneWorker) -> None:
    """`lines` works as with the file sink."""
    origin.behaviour = o.ok(b"1\n2\n")

    result = await worker.one(origin.url(), lines=True)

    assert (result.outcome, result.lines) == (Outcome.STORED, 2)


@pytest.mark.parametrize(
    "fields", [{"dest": "a/b"}, {"name": "{id}"}, {"decode": True}], ids=["dest", "name", "decode"]
)
async def test_dest_name_and_decode_are_refused_before_a_request(
    origin: Origin, start: Start, lines: Lines, fields: dict[str, Any]
) -> None:
    """The fetch ends as `bad_dest` if every worker of the fleet writes WARC."""
    worker = await start(sink="warc", alone=True)
    result = await worker.one(origin.url(), **fields)

    await wait_until(lambda: any(line["event"] == "fetch.finished" for line in lines), "the line")
    [note] = [line["note"] for line in lines if line["event"] == "fetch.finished"]
    assert (result.outcome, result.reason, result.attempts) == (Outcome.FAILED, Reason.BAD_DEST, 0)
    assert note.startswith(next(iter(fields)))
    assert not origin.requests


async def test_a_truncated_body_is_fetched_again_from_zero(origin: Origin, worker: OneWorker) -> None:
    """A record holds one whole response, so the WARC sink does not resume."""
    etag = [("ETag", '"1"')]

    async def cut(x: Exchange) -> None:
        await x.send_head(200, [*etag, ("Content-Length", str(len(LARGE)))])
        await x.send(LARGE[:-1])
        x.close()

    origin.behaviour = o.sequence(cut, o.ok(LARGE, etag))

    result = await worker.one(origin.url())

    assert record_of(worker.out, result).payload == LARGE
    assert [None, None] == [origin.header(seen, "Range") for seen in origin.requests]
    assert not worker.parts()


async def test_a_partial_file_of_a_file_sink_is_not_resumed_into_a_record(
    origin: Origin, start: Start
) -> None:
    """A fleet may change its sink while fetches are under way: the body is fetched from zero."""
    etag = [("ETag", '"1"')]

    async def stall_before_end(x: Exchange) -> None:
        await x.send_head(200, [*etag, ("Content-Length", str(len(LARGE)))])
        await x.send(LARGE[:-1])
        await asyncio.Event().wait()

    origin.behaviour = o.sequence(stall_before_end, o.ok(LARGE, etag))
    before = await start(grace_s=0)
    batch = await before.submit([origin.url()])

    def half() -> bool:
        return any((before.out / part).stat().st_size >= 2 * BLOCK_BYTES for part in before.parts())

    await wait_until(half, "the partial file")
    await before.stop()
    assert before.parts()
    after = await start(sink="warc", worker_id="two")
    [result] = await results_of(batch)

    assert record_of(after.out, result).payload == LARGE
    assert origin.header(origin.requests[-1], "Range") is None


async def test_revalidate_fetches_a_recorded_body_again(origin: Origin, worker: OneWorker) -> None:
    """The WARC sink has no index, so each response is recorded whole."""
    origin.behaviour = o.ok(b"same", [("ETag", '"1"')])

    results = [await worker.one(origin.url(), revalidate=True) for _ in range(2)]

    assert [Outcome.STORED] * 2 == [result.outcome for result in results]
    assert results[0].offset != results[1].offset


async def test_a_body_file_is_truncated_in_the_request_record(
    origin: Origin, start: Start, tmp_path: Path
) -> None:
    """The record is marked with WARC-Truncated, because a body file may have any size."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").write_bytes(b"sent")
    worker = await start(sink="warc", in_folder=tmp_path / "in")

    result = await worker.one(origin.url(), method="PUT", body_file="a")
    [_, request, _] = read(segments(worker.out)[str(result.path)])

    assert (request.field("WARC-Truncated"), request.payload) == ("length", b"")
    assert request.http.get_header("Content-Length") == "4"


@pytest.mark.skipif(not HAS_OPENSSL, reason="needs openssl")
@on_both_engines
async def test_a_response_over_http2_is_recorded_as_http11(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WARC readers know HTTP/1.1. WARC-Protocol names the version that was used."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.cert))
    tls = server_tls(authority.issue("host", f"IP:{HTTP2_HOST}"))
    async with Http2Origin.serving(HTTP2_HOST, tls, http2.ok) as host:
        worker = await start(sink="warc", policy={"http2": True})
        result = await worker.one(host.url("/a"))
        record = record_of(worker.out, result)

    assert (record.http.protocol, record.http.get_statuscode()) == ("HTTP/1.1", "200")
    assert record.field("WARC-Protocol") == "h2"
    assert record.field("WARC-IP-Address") == HTTP2_HOST
    assert hashlib.sha256(record.payload).hexdigest() == result.sha256


@both_compressions
async def test_a_stopping_worker_renames_its_segment(
    origin: Origin, worker: OneWorker, compression: str
) -> None:
    """An open segment has a suffix. Results already name its final path."""
    result = await worker.one(origin.url())
    while_open = worker.files()
    await worker.stop()

    assert while_open == {f"{result.path}.{'open' if compression == 'none' else 'writing'}"}
    assert worker.files() == {result.path, f"{result.path}.cdxj"}
    check_indexes(worker.out)
    assert record_of(worker.out, result).payload == b"ok"


@both_compressions
async def test_a_segment_is_closed_when_it_is_full(origin: Origin, start: Start) -> None:
    """Every segment begins with its own warcinfo record, and none is larger than `warc_max_bytes`."""
    worker = await start(sink="warc", warc_max_bytes=65536)
    bodies = {f"/{n}": RANDOM[n : n + 20_000] for n in range(12)}
    origin.behaviour = o.by_path({path: o.ok(body) for path, body in bodies.items()})

    results = await worker.results([origin.url(path) for path in bodies])
    await worker.stop()
    check_indexes(worker.out)
    found = segments(worker.out)

    assert len(found) >= 4
    assert max(map(len, found.values())) <= 65536
    assert {"warcinfo"} == {read(each)[0].kind for each in found.values()}
    assert list(bodies.values()) == [record_of(worker.out, result).payload for result in results]


async def test_an_old_segment_is_closed_without_another_fetch(origin: Origin, start: Start) -> None:
    """A reader of whole segments need not wait for the next fetch, which begins another segment."""
    worker = await start(sink="warc", warc_max_age_s=0.2)
    first = await worker.one(origin.url("/1"))
    await wait_until(lambda: first.path in worker.files(), "the name of the segment")
    second = await worker.one(origin.url("/2"))

    assert first.path != second.path


@both_compressions
@pytest.mark.parametrize("durability", ["none", "file", "full"])
async def test_records_are_synced_as_durability_requires(
    origin: Origin, start: Start, durability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records may share one sync. With `none` there is no sync."""
    synced: list[int] = []
    fdatasync = os.fdatasync

    def counted(file: int) -> None:
        synced.append(file)
        fdatasync(file)

    monkeypatch.setattr(os, "fdatasync", counted)
    worker = await start(sink="warc", policy={"durability": durability, "concurrency": 8})

    results = await worker.results([origin.url(f"/{n}") for n in range(24)])

    assert {Outcome.STORED} == {result.outcome for result in results}
    assert bool(synced) == (durability != "none")
    assert len(synced) <= 24


@both_compressions
@pytest.mark.parametrize("size", [10, len(LARGE)], ids=["small", "large"])
@pytest.mark.parametrize("call", ["writev", "fdatasync"])
async def test_a_full_disk_charges_no_attempt_and_leaves_no_partial_record(
    origin: Origin, start: Start, call: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer cuts the partial record off, and the fetch waits as with files."""
    quick = tuned(disk_pause_s=0.05)
    worker = await start(sink="warc", policy={"durability": "file"}, timings=quick)
    first = await worker.one(origin.url("/first"))
    origin.behaviour = o.ok(LARGE[:size])
    real, left = getattr(os, call), [1]

    def refuses_once(file: int, *blocks: Any) -> int:
        if left:
            left.pop()
            if blocks:
                real(file, [blocks[0][0][:5]])
            raise OSError(errno.ENOSPC, "No space left on device")
        done: int = real(file, *blocks)
        return done

    monkeypatch.setattr(os, call, refuses_once)
    second = await worker.one(origin.url("/second"))
    await worker.stop()

    assert (second.outcome, second.attempts, second.interruptions) == (Outcome.STORED, 1, 1)
    assert record_of(worker.out, first).payload == b"ok"
    assert record_of(worker.out, second).payload == LARGE[:size]
    for found in segments(worker.out).values():
        read(found)
    assert not worker.parts()


@both_compressions
async def test_no_record_is_written_after_the_lane_is_lost(
    origin: Origin, worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer's thread checks the lease last. The fetch runs again."""
    lost: list[str] = []
    real = RecordWriter.may_place

    def loses(self: RecordWriter) -> bool:
        if not lost:
            lost.append("once")
            return False
        return real(self)

    monkeypatch.setattr(RecordWriter, "may_place", loses)
    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts, result.interruptions) == (Outcome.STORED, 1, 1)
    kinds = [found.kind for found in read(segments(worker.out)[str(result.path)])]
    assert kinds == ["warcinfo", "request", "response"]


async def test_a_lane_that_is_lost_while_a_body_is_compressed_leaves_nothing(
    origin: Origin, worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compression ends early, its file is removed, and the fetch runs again."""
    origin.behaviour = o.ok(LARGE)
    seen: list[set[str]] = []
    real = RecordWriter.may_place

    def loses(self: RecordWriter) -> bool:
        if len(seen) < 2:
            seen.append({Path(name).suffix for name in worker.parts()})
            return not seen[1:]
        return real(self)

    monkeypatch.setattr(RecordWriter, "may_place", loses)
    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts, result.interruptions) == (Outcome.STORED, 1, 1)
    assert ".gz" in seen[1], "the second check is made while the body is compressed"
    kinds = [found.kind for found in read(segments(worker.out)[str(result.path)])]
    assert kinds == ["warcinfo", "request", "response"]
    assert not worker.parts()


async def test_a_removed_segment_receives_no_further_record(origin: Origin, worker: OneWorker) -> None:
    """The worker makes the folder again and begins another segment."""
    await worker.one(origin.url("/1"))
    for path in (worker.out / "warc").iterdir():
        path.unlink()
    (worker.out / "warc").rmdir()

    assert record_of(worker.out, await worker.one(origin.url("/2"))).payload == b"ok"


async def test_the_open_name_of_a_compressed_segment_is_unknown_to_workers_of_version_01(
    origin: Origin, worker: OneWorker
) -> None:
    """They delete a `.open` segment of a dead writer if it does not begin with an uncompressed record."""
    await worker.one(origin.url())

    assert [".writing"] == [Path(name).suffix for name in worker.files()]


async def test_a_file_in_place_of_the_warc_folder_prevents_the_start(start: Start, tmp_path: Path) -> None:
    """The error names the file, which stays."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/warc").write_bytes(b"mine")

    with pytest.raises(CommandError, match="'warc' is a file") as raised:
        await start(sink="warc")
    assert raised.value.exit_code == BAD_USE
    assert (tmp_path / "out/warc").read_bytes() == b"mine"


@pytest.fixture
def left(tmp_path: Path) -> Left:
    """Return a function that recovers a segment of a dead writer, and returns the files that are left."""
    folders = Directory(tmp_path / "left")

    def recovered(found: bytes) -> dict[str, bytes]:
        folders.open()
        try:
            with folders.chain("warc"):
                (tmp_path / "left/warc/dead-1.warc.open").write_bytes(found)
            recover(folders)
            check_indexes(tmp_path / "left")
            return segments(tmp_path / "left")
        finally:
            folders.close()

    return recovered


@both_compressions
async def test_a_partial_record_of_a_dead_writer_is_cut_off(
    origin: Origin, worker: OneWorker, left: Left
) -> None:
    """For any point of death the segment keeps its whole records and gets its final name."""
    origin.behaviour = o.ok(b"\r\n\r\nWARC/1.1\r\nContent-Length: 1\r\n\r\n")
    result = await worker.one(origin.url())
    whole = segments(worker.out)[str(result.path)]
    ends = [found.offset for found in read(whole)[1:]] + [len(whole)]

    for size in sorted({*range(0, len(whole), 37), *(end + by for end in ends[:-1] for by in (-1, 0, 1))}):
        kept = max([end for end in ends if end <= size], default=0)
        assert left(whole[:size]) == ({"warc/dead-1.warc": whole[:kept]} if kept else {}), size
        padded = whole[:size] + bytes(
            5000
        )  # as after a power loss; zeros may end a member as its own bytes do
        kept = max([end for end in ends if padded.startswith(whole[:end])], default=0)
        assert left(padded) == ({"warc/dead-1.warc": whole[:kept]} if kept else {}), size


@both_compressions
async def test_a_worker_recovers_only_segments_of_dead_writers(
    origin: Origin, start: Start, worker: OneWorker, compression: str
) -> None:
    """The segment of a live writer is locked and stays. Links and folders with such a name stay too."""
    result = await worker.one(origin.url())
    whole = segments(worker.out)[str(result.path)]
    folder = worker.out / "warc"
    (folder / "dead-1.warc.open").write_bytes(whole + whole[:-1])
    (folder / "aside.warc.open").mkdir()
    (folder / "link.warc.open").symlink_to(worker.out / "elsewhere")
    (worker.out / "elsewhere").write_bytes(b"mine")
    await start(sink="warc", worker_id="two")
    await wait_until((folder / "dead-1.warc").exists, "the recovered segment")

    names = {path.name for path in folder.iterdir()}
    assert names == {
        Path(f"{result.path}.{'open' if compression == 'none' else 'writing'}").name,
        "dead-1.warc",
        "dead-1.warc.cdxj",
        "aside.warc.open",
        "link.warc.open",
    }
    assert [found.kind for found in read((folder / "dead-1.warc").read_bytes())][:3] == [
        "warcinfo",
        "request",
        "response",
    ]
    assert (worker.out / "elsewhere").read_bytes() == b"mine"


@pytest.mark.parametrize("step", ["lock", "unlink"])
async def test_a_new_segment_that_another_worker_recovers_is_given_up(
    origin: Origin, worker: OneWorker, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It has found the new file before its writer locked it, so it may cut or remove the file at any time."""
    seen, held = list[Path](), list[Any]()

    def overtaken(file: int) -> bool | None:
        if not seen:
            seen.extend((worker.out / "warc").glob("*.writing"))
            held.append(seen[0].open("rb"))
            assert open_file.lock(held[0].fileno())
            if step == "unlink":
                seen[0].unlink()
                held[0].close()
        return open_file.lock(file)

    monkeypatch.setattr(segment, "lock", overtaken)

    result = await worker.one(origin.url("/a"))

    held[0].close()
    assert (result.outcome, result.interruptions) == (Outcome.STORED, 0)
    assert result.path != f"warc/{seen[0].name.removesuffix('.writing')}"
    assert record_of(worker.out, result).payload == b"ok"


async def test_a_worker_starts_before_large_segments_are_recovered(
    origin: Origin, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recovery reads whole segments. A worker that stops meanwhile leaves the segment to the next one."""
    first = await start(sink="warc", worker_id="first")
    await first.one(origin.url("/1"))
    await first.stop()
    [segment] = [path for path in (tmp_path / "out/warc").iterdir() if path.suffix == ".gz"]
    dead = segment.rename(f"{segment}.writing")
    whole, reading = dead.read_bytes(), threading.Event()

    def waits(file: int, stop: threading.Event | None) -> Iterator[FoundRecord]:
        assert stop is not None
        reading.set()
        stop.wait()
        return complete_records(file, stop)

    monkeypatch.setattr(recovery, "complete_records", waits)
    second = await start(sink="warc", worker_id="second")
    result = await second.one(origin.url("/2"))
    assert reading.is_set()
    await second.stop()
    assert result.outcome is Outcome.STORED
    assert dead.read_bytes() == whole
    monkeypatch.undo()
    await start(sink="warc", worker_id="third")
    await wait_until(segment.exists, "the recovered segment")

    assert segment.read_bytes() == whole


async def test_a_segment_never_overwrites_a_file_of_its_name(
    origin: Origin, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that was set back costs no record. Worker IDs are made safe for paths."""
    worker = await start(sink="warc", worker_id="../a b/c")
    result = await worker.one(origin.url())
    name = Path(str(result.path)).name

    assert name.startswith("_a_b_c-")
    disk = worker.runtime.services.sink.disk
    assert isinstance(disk, OutFolder)
    with disk.directory.chain("warc"), pytest.raises(FileExistsError):
        Segment(disk.directory, name, b"")
    (worker.out / "warc" / "taken.warc").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        Segment(disk.directory, "taken.warc", b"")
    assert (worker.out / "warc" / "taken.warc").read_bytes() == b"old"


@both_compressions
async def test_at_the_file_size_limit_only_records_too_large_for_a_new_segment_fail(
    origin: Origin, worker: OneWorker, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EFBIG closes the segment. Bodies that fit into a new one are stored there."""
    limit_bytes = 40_000
    writev, sendfile = os.writev, os.sendfile

    def refuse(file: int, more_bytes: int) -> None:
        if os.fstat(file).st_size + more_bytes > limit_bytes:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    def write(file: int, blocks: list[Any]) -> int:
        refuse(file, sum(map(len, blocks)))
        return writev(file, blocks)

    def send(out: int, into: int, offset: int, count: int) -> int:
        refuse(out, count)
        return sendfile(out, into, offset, count)

    monkeypatch.setattr(os, "writev", write)
    monkeypatch.setattr(os, "sendfile", send)
    origin.behaviour = o.by_path(
        {"/large": o.ok(RANDOM), "/huge": o.ok(LARGE)}, otherwise=o.ok(RANDOM[:15_000])
    )
    batch = await worker.submit([origin.url(f"/{n}") for n in ("a", "b", "large", "huge", "c", "d", "e")])

    results = {result.url: result for result in await results_of(batch)}

    for name in ("large", "huge"):
        result = results.pop(origin.url(f"/{name}"))
        assert (result.outcome, result.reason, result.attempts) == (Outcome.FAILED, Reason.TOO_LARGE, 1)
    for result in results.values():
        assert (result.outcome, result.attempts, result.interruptions) == (Outcome.STORED, 1, 0)
        assert record_of(worker.out, result).payload == RANDOM[:15_000]
    assert len(origin.requests) == 7
    assert not [line for line in lines if line["event"] in {"disk.full", "disk.refused"}]
    assert not worker.parts()
