"""Stores each body as an object of a store, once the body is complete and checked.

A body below a block goes from memory to the store. A larger one is written to the spool first, as the file
sink writes its partial files, so that it can be resumed; then it is uploaded.
"""

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.worker.errors import StoringCancelledError
from fetchfleet.worker.sink.base import Expected, HttpExchange, ResumePoint, StorageOptions
from fetchfleet.worker.sink.files.buffered_body import BufferedBody
from fetchfleet.worker.sink.files.out_folder import OutFolder
from fetchfleet.worker.sink.files.partial_file import PartialFile
from fetchfleet.worker.sink.files.takeover import Takeovers
from fetchfleet.worker.sink.index_entry import StoredAt
from fetchfleet.worker.sink.objects.index import ObjectIndex
from fetchfleet.worker.sink.objects.key import WholeBody, place
from fetchfleet.worker.sink.objects.store import ObjectStore
from fetchfleet.worker.sink.objects.upload import FencedError, SpooledBody, Target, UploadBudget, upload
from fetchfleet.worker.util.executors import run_in, run_stoppable
from fetchfleet.worker.util.object_url import ObjectUrl

MAX_CONTENT_TYPE_CHARS = 255


class ObjectSink:
    """Stores bodies as objects below the prefix of a URL. Call open() first, and close() at the end."""

    stores_head_responses = False

    def __init__(self, url: ObjectUrl, spool: Path) -> None:
        self.store = str(url)
        self.disk = OutFolder(spool)
        self.partial_files = Takeovers(self.disk)
        self.objects = ObjectStore(url)
        self.stored = ObjectIndex(self.objects)
        self.budget = UploadBudget()

    def open(self) -> None:
        """Prepare the spool, and check the store with a first write. Raises OSError or CommandError."""
        self.disk.open()
        self.objects.check()

    def close(self) -> None:
        """Release the spool; a second call does nothing."""
        self.disk.close()

    def refusal(self, fetch: Fetch) -> str | None:
        """Return why the fetch is not supported: the key of its `dest` is too long for a store."""
        if fetch.dest is not None and self.objects.is_too_long(fetch.dest):
            return "dest: with the prefix of --out, the key of the object has more than 1024 bytes"
        return None

    def writer(
        self,
        entry: Entry,
        token: int,
        expected: Expected,
        options: StorageOptions | None = None,
        resume: ResumePoint | None = None,
        exchange: HttpExchange | None = None,
    ) -> "ObjectWriter":
        """Return a writer for the body of a fetch. token: the lane's token; see Sink."""
        return ObjectWriter(self, entry, token, expected, options or StorageOptions(), resume, exchange)


class ObjectWriter(BufferedBody):
    """Writes one body to the store: from memory, or from its file in the spool."""

    def __init__(
        self,
        sink: ObjectSink,
        entry: Entry,
        token: int,
        expected: Expected,
        options: StorageOptions,
        resume: ResumePoint | None,
        exchange: HttpExchange | None,
    ) -> None:
        super().__init__(sink.disk, entry.id, token, expected, resume)
        self._sink = sink
        self._entry = entry
        self._fetch = entry.fetch
        self._options = options
        self._exchange = exchange

    async def commit(self, may_place: Callable[[], bool]) -> StoredAt | None:
        """Check the body and store it as an object. Returns None without one if may_place returns False.

        The store makes the object only when it has the whole body. The file in the spool stays open and
        locked until then, so that `keep` can leave it for a later attempt. Raises TruncatedBodyError,
        DigestMismatchError, BadDestError, ExistsError, OverlongBodyError or OSError.
        """
        if self._partial is None:
            sha256 = await run_in(self._disk.for_names, self._checked)
        else:
            await self.drain()
            await self._partial.written()
            sha256 = self._checked()
        try:
            return await self._store(sha256, may_place)
        except FencedError:
            return None
        except asyncio.CancelledError:
            raise StoringCancelledError from None

    async def _store(self, sha256: str, may_place: Callable[[], bool]) -> StoredAt | None:
        content = WholeBody(self.size_bytes, sha256)

        async def put(path: str, *, create: bool) -> str | None:
            target = Target(path, self._attributes(sha256), create)
            if self._partial is not None:
                return await self._upload(self._partial, target, may_place)
            if not may_place():
                raise FencedError
            body = b"".join(self._pieces)
            return await self._sink.objects.put(path, body, target.attributes, create=create)

        placed = await place(self._entry, self._exchange, content, self._sink.objects, put)
        if self._disk.refusals.in_a_row:
            self._disk.accepted()
        at = StoredAt(placed.path, self.size_bytes, sha256)
        if self._options.remember is not None:
            await self._sink.stored.add(self._fetch, at, placed.etag, self._options.remember)
        return at

    async def _upload(self, large: PartialFile, target: Target, may_place: Callable[[], bool]) -> str | None:
        """Upload the file of a body in the spool. Returns the ETag of the object."""
        disk = self._disk

        def open_file(_stop: threading.Event) -> int:
            return disk.directory.open_partial(large.name)

        file = await run_stoppable(disk.for_names, open_file, on_cancelled=os.close)
        try:
            spooled = SpooledBody(file, self.size_bytes, disk.for_blocks)
            return await upload(self._sink.objects, target, spooled, self._sink.budget, may_place)
        finally:
            os.close(file)

    def _attributes(self, sha256: str) -> dict[str, str]:
        """Return the attributes of the object: the host's media type, the body's digest, the fetch's ID."""
        attributes = {"sha256": sha256, "fetch": self._entry.id}
        answer = self._exchange.answer if self._exchange is not None else None
        # A 416 only confirms that the spooled body is complete: its header is that of an error page.
        media_type = answer.header("content-type") if answer is not None and answer.status < 300 else None
        if media_type and media_type.isascii() and media_type.isprintable():
            # Signatures of requests differ between clients and stores if a value has two spaces in a row.
            attributes["Content-Type"] = " ".join(media_type[:MAX_CONTENT_TYPE_CHARS].split())
        return attributes
