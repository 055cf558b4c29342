"""To which room a moment of a worker's time belongs, by the frames on its stack. Pure."""

from collections.abc import Iterable

ROOMS = {
    "log": ("/structlog/", "/worker/lines.py", "/worker/log.py", "/worker/redact.py"),
    "sink": ("/worker/sink/", "/aiofiles/"),
    "gate": ("/worker/gate/", "/worker/lane.py", "/worker/rate.py", "/worker/pace.py"),
    "engine": (
        *("/worker/http/", "/httpx/", "/httpcore2/", "/h11/", "/h2/", "/hpack/", "/pyreqwest/"),
        *("/anyio/", "/sniffio/", "/idna/", "/truststore/", "/aiohappyeyeballs/", "/aiodns/"),
    ),
    "Redis": ("/redis/", "/hiredis/", "/arq/", "/jobs/scripts.py", "/jobs/wake.py"),
    "settle": ("/worker/settle.py", "/worker/store.py", "/worker/report.py", "/worker/patience.py"),
    "lane": ("/worker/", "/jobs/"),
}
OTHERS = "loop"
THREADS = {
    "blocks": "sink",
    "names": "sink",
    "hashing": "sink",
    "sending": "engine",
    "coding": "decoding",
    "pyreqwest": "engine",
}


def room_of(files: Iterable[str]) -> str:
    """The room of the innermost frame that has one; what has none is the loop's own."""
    for file in files:
        for room, parts in ROOMS.items():
            if any(part in file for part in parts):
                return room
    return OTHERS


def room_of_thread(name: str) -> str:
    """The room of a thread, by its name."""
    return f"{THREADS.get(name.partition('_')[0], 'other work')}, in threads"
