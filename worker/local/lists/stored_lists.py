"""Lists in object stores: Amazon S3, Google Cloud Storage and Azure."""

import fnmatch
import io
import re
from collections.abc import Iterator
from typing import IO, Any

from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.lists.rows import ListError

BLOCK_BYTES = 256 * 1024
_MAGIC = re.compile(r"[*?[]")


def find_objects(url: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield name and content of each object that a URL such as s3://bucket/lists/*.txt matches.

    The store reads credentials and endpoint from the environment. Raises ListError; CommandError without the
    extra `objects`.
    """
    try:
        import obstore  # noqa: PLC0415 few lists are in a store
        from obstore.exceptions import BaseError  # noqa: PLC0415
    except ImportError:
        raise CommandError(
            f"{url}: reading from an object store needs: pip install 'fetchfleet[objects]'", BAD_USE
        ) from None
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    root = f"{scheme}://{bucket}"
    if not bucket or not key:
        raise ListError(f"{url}: give the bucket and the name of an object")
    try:
        store: Any = obstore.store.from_url(root)
        for name in _names(store, key):
            response = obstore.get(store, name)
            yield f"{root}/{name}", io.BufferedReader(_Stream(iter(response)), BLOCK_BYTES)
    except (BaseError, OSError, ValueError) as error:
        from fetchfleet.worker.sink.objects.store import cause_of  # noqa: PLC0415

        raise ListError(f"{url}: {cause_of(error)}") from None


def _names(store: Any, key: str) -> list[str]:
    """Return the names of the objects that a key or pattern names, sorted. `*` does not match a slash."""
    import obstore  # noqa: PLC0415

    if (found := _MAGIC.search(key)) is None:
        return [key]
    prefix = key[: found.start()].rpartition("/")[0]
    objects = (item for page in obstore.list(store, prefix or None) for item in page)
    names = sorted(
        item["path"]
        for item in objects
        if item["path"].count("/") == key.count("/") and fnmatch.fnmatchcase(item["path"], key)
    )
    if not names:
        raise ListError(f"{key}: no object matches")
    return names


class _Stream(io.RawIOBase):
    """The pieces of an object as a file."""

    def __init__(self, pieces: Iterator[Any]) -> None:
        super().__init__()
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(bytes(piece))
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size
