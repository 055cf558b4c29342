"""The bodies in the segments of the out folder, by digest, so that a body is stored once. Thread-safe.

Memory is bounded: the least recently used digests are forgotten, and their bodies are stored again. An entry
is a hint. The record that it points to is read before a revisit record may refer to it.
"""

import os
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress

from fetchfleet.worker.errors import InTheWayError
from fetchfleet.worker.sink.cdxj.line import REVISIT_MIME, head_of, parsed
from fetchfleet.worker.sink.cdxj.segment_index import SUFFIX
from fetchfleet.worker.sink.files.directory import WARC_FOLDER, Directory
from fetchfleet.worker.sink.warc.record_format import OriginalRecord
from fetchfleet.worker.sink.warc.records import start_at
from fetchfleet.worker.sink.warc.segment import open_name

MIN_BYTES = 1024
"""Smaller bodies are not worth it: the fields of a revisit record take a few hundred bytes."""

MAX_BODIES = 100_000
"""The number of digests in memory, 25 MB of them."""


class KnownBodies:
    """The places of bodies in segments, by digest. max_bodies: 0 if no body is to be known."""

    def __init__(self, directory: Directory, max_bodies: int = MAX_BODIES) -> None:
        self._directory = directory
        self._max_bodies = max_bodies
        self._lock = threading.Lock()
        self._loaded = False
        self._places: dict[bytes, tuple[str, int, int]] = {}
        """Path of the segment, offset and length; the most recently used last."""

    def add(self, digest: str, path: str, offset: int, length: int) -> None:
        """Add a record that is complete in its segment. digest: in the form of WARC-Payload-Digest."""
        if self._max_bodies:
            with self._lock:
                self._places[_key(digest)] = path, offset, length
                if len(self._places) > self._max_bodies:
                    del self._places[next(iter(self._places))]

    def find(self, digest: str, size_bytes: int, durability: str) -> OriginalRecord | None:
        """Return the record with this body; None if it is not known or worth it. Blocks.

        The record is there, and as durable as `durability` requires.
        """
        if size_bytes < MIN_BYTES or not self._max_bodies:
            return None
        key = _key(digest)
        with self._lock:
            if not self._loaded:
                self._load()
                self._loaded = True
            place = self._places.pop(key, None)
        if place is None:
            return None
        with suppress(OSError, InTheWayError, zlib.error):
            original = self._read(digest, OriginalRecord(*place), durability)
            if original is not None:
                self.add(digest, *place)
            return original
        return None

    def _load(self) -> None:
        """Add the bodies of the indexes in the out folder, the newest first, until the memory is full."""
        places: list[tuple[bytes, tuple[str, int, int]]] = []
        for line in self._lines():
            found = parsed(line)
            if found is None or found.mime == REVISIT_MIME:
                continue
            with suppress(ValueError):
                path = sys.intern(f"{WARC_FOLDER}/{found.filename}")
                places.append((_key(found.digest), (path, int(found.offset), found.record_bytes)))
            if len(places) == self._max_bodies:
                break
        self._places = {**dict(reversed(places)), **self._places}

    def _lines(self) -> Iterator[bytes]:
        """Yield the lines of all indexes, those of the newest index first."""
        with suppress(OSError, InTheWayError), self._directory.chain(WARC_FOLDER, make=False) as chain:
            names = [name for name in os.listdir(chain[-1]) if name.endswith(SUFFIX)]  # noqa: PTH208
            ages = {name: os.stat(name, dir_fd=chain[-1], follow_symlinks=False).st_mtime for name in names}
            for name in sorted(names, key=ages.__getitem__, reverse=True):
                with open(self._directory.open_file(f"{WARC_FOLDER}/{name}"), "rb") as index:  # noqa: PTH123
                    yield from index

    def _read(self, digest: str, original: OriginalRecord, durability: str) -> OriginalRecord | None:
        """Return the record with its fields; None if it is another. Syncs it as `durability` requires."""
        file = self._open(original.path)
        try:
            if os.fstat(file).st_size < original.offset + original.length:
                return None
            fields = head_of(start_at(file, original.offset)).fields
            if fields.get("warc-type") != "response" or fields.get("warc-payload-digest") != digest:
                return None
            if durability != "none":
                os.fdatasync(file)
        finally:
            os.close(file)
        if durability == "full":
            with self._directory.chain(WARC_FOLDER) as chain:
                for folder in chain:
                    os.fsync(folder)
        record_id, url, date = (fields[f"warc-{name}"] for name in ("record-id", "target-uri", "date"))
        return original._replace(record_id=record_id, url=url, date=date)

    def _open(self, path: str) -> int:
        """Open a segment, which may be closed at any time. Raises OSError or InTheWayError."""
        for name in (path, open_name(path)):
            with suppress(FileNotFoundError):
                return self._directory.open_file(name)
        return self._directory.open_file(path)


def _key(digest: str) -> bytes:
    """Return the bytes that stand for a digest in memory: 160 bits. The record has all of it."""
    return digest.partition(":")[2][:32].encode()
