"""What was stored under which URL, beside the bodies: written only for fetches that may come back to it.

A record's own time of change says when somebody last asked for it.
"""

import os
import threading
from contextlib import suppress
from io import FileIO

from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.worker.errors import BadDestError
from fetchfleet.worker.sink.files.directory import STATE_FOLDER, Folders
from fetchfleet.worker.sink.files.takeover import SHA256, hashed
from fetchfleet.worker.sink.index_entry import Old, Record, Validators, fits, from_json, key_of, to_json

STORED = f"{STATE_FOLDER}/stored"

MAX_RECORD_BYTES = 128 * 1024
"""A longer one is none of ours."""


def record_of(found: os.stat_result, path: str, sha256: str, validators: Validators) -> Record:
    """What to remember of a body; found: its file, before anybody else's can have its name."""
    return Record(
        path=path,
        bytes=found.st_size,
        sha256=sha256,
        stored_ms=_changed_ms(found),
        inode=found.st_ino,
        **validators._asdict(),
    )


def remember(folders: Folders, key: str, part: str, record: Record) -> None:
    """Note which file holds a body. It is no fault of the body if that fails."""
    with suppress(OSError, BadDestError):
        file = folders.create(part)
        try:
            os.write(file, to_json(record))
            folders.put(part, _place(key))
        finally:
            os.close(file)
            folders.drop(part)


def recorded(folders: Folders, fetch: Fetch) -> Record | None:
    """What is remembered of the fetch; it counts as asked for."""
    with suppress(OSError, BadDestError):
        file = folders.open_file(_place(key_of(fetch)))
        try:
            record = from_json(os.read(file, MAX_RECORD_BYTES))
            os.utime(file)
        finally:
            os.close(file)
        return record
    return None


def look_up(folders: Folders, fetch: Fetch) -> Old | Record | None:
    """What was stored before, as the fetch would have taken it; a record has yet to be held against its file.

    What stands at the fetch's own `dest` comes first, even where nobody remembers what it is.
    """
    record = recorded(folders, fetch)
    if fetch.dest is not None and (record is None or record.path != fetch.dest):
        found = _at(folders, fetch.dest)
        if found is not None and fits(fetch, found.size_bytes, None):
            return found
    return record if record is not None and fits(fetch, record.bytes, record.sha256) else None


def at_dest(folders: Folders, fetch: Fetch) -> tuple[Old | None, Record | None]:
    """The file at the fetch's own `dest`, and what is remembered of it, if anything is."""
    found = _at(folders, fetch.dest) if fetch.dest is not None else None
    record = recorded(folders, fetch) if found is not None else None
    return found, record if record is not None and record.path == fetch.dest else None


def old_of(record: Record) -> Old:
    """The file of a record that has proved to be the one."""
    return Old(path=record.path, size_bytes=record.bytes, sha256=record.sha256)


def untouched(folders: Folders, record: Record) -> bool | None:
    """Whether the file is the one that was stored; None if only its digest can tell."""
    found = _stat(folders, record.path)
    if found is None or found.st_size != record.bytes:
        return False
    same = _changed_ms(found) == record.stored_ms and record.inode in {0, found.st_ino}
    return True if same else None


def has_its_digest(folders: Folders, record: Record, stop: threading.Event) -> bool:
    """Whether the file is, byte for byte, what was stored; reads all of it, unless told to stop."""
    with suppress(OSError, BadDestError), FileIO(folders.open_file(record.path)) as file:
        if os.fstat(file.fileno()).st_size == record.bytes:
            digest: str = hashed(file, record.bytes, SHA256, stop).hexdigest()
            return digest == record.sha256
    return False


def below(folders: Folders) -> list[str]:
    """The folders in which records are."""
    with suppress(OSError, BadDestError):
        return [f"{STORED}/{name}" for name in folders.names(STORED)]
    return []


def sweep(folders: Folders, folder: str, oldest_s: float) -> int:
    """Drop the records of one folder that nobody has asked for since (Unix time); how many they were."""
    with suppress(OSError, BadDestError):
        return folders.drop_old(folder, oldest_s)
    return 0


def _at(folders: Folders, path: str) -> Old | None:
    found = _stat(folders, path)
    return None if found is None else Old(path=path, size_bytes=found.st_size, sha256=None)


def _stat(folders: Folders, path: str) -> os.stat_result | None:
    """Of the file at a path; no link is followed, and what the disk does not say is not there."""
    with suppress(OSError):
        return folders.stat(path)
    return None


def _place(key: str) -> str:
    return f"{STORED}/{key[:2]}/{key}.json"


def _changed_ms(found: os.stat_result) -> int:
    return found.st_mtime_ns // 1_000_000
