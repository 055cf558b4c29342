"""What was stored under which URL, beside the bodies: written only for fetches that may fall back on it."""

import contextlib
import hashlib
import os
from pathlib import Path

from jobs.model import Fetch
from worker.fallback import Old, Record, fits, from_json, key_of, to_json


def remember(folder: Path, key: str, temporary: Path, file: Path, path: str, sha256: str) -> None:
    """Note which file holds a body. It is no fault of the body if that fails."""
    with contextlib.suppress(OSError):
        found = file.stat()
        record = Record(path=path, bytes=found.st_size, sha256=sha256, stored_ms=_changed_ms(found))
        place = _place(folder, key)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(to_json(record))
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)


def look_up(out: Path, folder: Path, fetch: Fetch) -> Old | None:
    """The file that was stored before, as the fetch would have taken it; None if it is there no more.

    What stands at the fetch's own `dest` comes first, even where nobody remembers what it is.
    """
    record = _record(folder, key_of(fetch))
    if fetch.dest is not None and (record is None or record.path != fetch.dest):
        found = _stat(out, fetch.dest)
        if found is not None and fits(fetch, found.st_size, None):
            return Old(path=fetch.dest, size_bytes=found.st_size, sha256=None)
    if record is None or not fits(fetch, record.bytes, record.sha256) or not _holds(out, record):
        return None
    return Old(path=record.path, size_bytes=record.bytes, sha256=record.sha256)


def _record(folder: Path, key: str) -> Record | None:
    with contextlib.suppress(OSError):
        return from_json(_place(folder, key).read_bytes())
    return None


def _holds(out: Path, record: Record) -> bool:
    """Whether the file is the one that was stored: untouched since, or with the same digest."""
    found = _stat(out, record.path)
    if found is None or found.st_size != record.bytes:
        return False
    if _changed_ms(found) == record.stored_ms:
        return True
    with contextlib.suppress(OSError), (out / record.path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == record.sha256
    return False


def _stat(out: Path, path: str) -> os.stat_result | None:
    """Of a file inside the out folder; a link that leads out of it is none."""
    file = Path(os.path.realpath(out / path))
    if not file.is_relative_to(os.path.realpath(out)):
        return None
    with contextlib.suppress(OSError):
        return file.stat() if file.is_file() else None
    return None


def _place(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key}.json"


def _changed_ms(found: os.stat_result) -> int:
    return found.st_mtime_ns // 1_000_000
