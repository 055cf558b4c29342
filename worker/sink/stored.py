"""What was stored under which URL, beside the bodies: written only for fetches that may come back to it.

A record's own time of change says when somebody last asked for it.
"""

import contextlib
import hashlib
import os
from pathlib import Path

from msgspec.structs import replace

from jobs.model import Fetch
from worker.fallback import Old, Record, fits, from_json, key_of, to_json
from worker.http.errors import BadDestError
from worker.sink.folders import STATE_FOLDER, Folders
from worker.validators import usable

STORED = f"{STATE_FOLDER}/stored"


def remember(folders: Folders, key: str, part: str, record: Record) -> None:
    """Note which file holds a body. It is no fault of the body if that fails."""
    with contextlib.suppress(OSError, BadDestError):
        found = folders.stat(record.path)
        if found is None:
            return
        record = replace(record, bytes=found.st_size, stored_ms=_changed_ms(found))
        file = folders.create(part)
        try:
            os.write(file, to_json(record))
            folders.put(part, f"{STORED}/{_place(key)}")
        finally:
            os.close(file)
            folders.drop(part)


def look_up(out: Path, folder: Path, fetch: Fetch) -> Old | None:
    """The file that was stored before, as the fetch would have taken it; None if it is there no more.

    What stands at the fetch's own `dest` comes first, even where nobody remembers what it is.
    """
    record = _record(folder, fetch)
    if fetch.dest is not None and (record is None or record.path != fetch.dest):
        found = _stat(out, fetch.dest)
        if found is not None and fits(fetch, found.st_size, None):
            return Old(path=fetch.dest, size_bytes=found.st_size, sha256=None)
    if record is None or not fits(fetch, record.bytes, record.sha256) or not holds(out, record):
        return None
    return Old(path=record.path, size_bytes=record.bytes, sha256=record.sha256)


def known(out: Path, folder: Path, fetch: Fetch) -> Record | None:
    """What was stored before and still is, where the fetch would have it."""
    record = _record(folder, fetch)
    return record if record is not None and usable(fetch, record) and holds(out, record) else None


def at_dest(out: Path, folder: Path, fetch: Fetch) -> Old | None:
    """The file at the fetch's own `dest`; sha256 is None where nobody remembers what it is."""
    found = _stat(out, fetch.dest) if fetch.dest is not None else None
    if fetch.dest is None or found is None:
        return None
    record = _record(folder, fetch)
    ours = record is not None and record.path == fetch.dest and holds(out, record)
    return Old(path=fetch.dest, size_bytes=found.st_size, sha256=record.sha256 if record and ours else None)


def sweep(folder: Path, oldest_s: float) -> int:
    """Drop the records of one folder that nobody has asked for since (Unix time); how many they were."""
    dropped = 0
    with contextlib.suppress(OSError):
        for record in folder.iterdir():
            with contextlib.suppress(OSError):
                if record.lstat().st_mtime < oldest_s:
                    record.unlink()
                    dropped += 1
    return dropped


def _record(folder: Path, fetch: Fetch) -> Record | None:
    """What is remembered of the fetch; it counts as asked for."""
    place = folder / _place(key_of(fetch))
    with contextlib.suppress(OSError):
        record = from_json(place.read_bytes())
        os.utime(place)
        return record
    return None


def holds(out: Path, record: Record) -> bool:
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


def _place(key: str) -> str:
    return f"{key[:2]}/{key}.json"


def _changed_ms(found: os.stat_result) -> int:
    return found.st_mtime_ns // 1_000_000
