"""Assign samples of a worker's CPU time to subsystems, by the frames on the stack. Pure."""

from collections.abc import Iterable

ROOMS = {
    "log": ("/structlog/", "/worker/observability/", "/log_events.py"),
    "sink": ("/worker/sink/", "/aiofiles/"),
    "gate": ("/worker/gate/", "/worker/lanes/lane.py", "/worker/body/min_rate.py"),
    "engine": (
        *("/worker/http/", "/httpx/", "/httptools/", "/h2/", "/hpack/"),
        *("/idna/", "/aiohappyeyeballs/", "/aiodns/"),
    ),
    "Redis": ("/redis/", "/hiredis/", "/arq/", "/jobs/scripts/", "/jobs/notify.py"),
    "settle": ("/worker/lanes/", "/worker/fetch/rules/result.py"),
    "lane": ("/worker/", "/jobs/"),
}
OTHERS = "loop"
THREADS = {
    "blocks": "sink",
    "names": "sink",
    "warc": "sink",
    "hashing": "sink",
    "sending": "engine",
    "coding": "decoding",
}


def room_of(files: Iterable[str]) -> str:
    """Return the subsystem of the innermost frame that has one, else the event loop."""
    for file in files:
        for room, parts in ROOMS.items():
            if any(part in file for part in parts):
                return room
    return OTHERS


def room_of_thread(name: str) -> str:
    """Return the subsystem of a thread, by its name."""
    return f"{THREADS.get(name.partition('_')[0], 'other work')}, in threads"
