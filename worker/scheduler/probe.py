"""Chooses the probe of a host that may be down. Pure."""

from collections.abc import Sequence

from fetchfleet.jobs.contract.entry import Entry

_METHODS = {"HEAD": 0, "OPTIONS": 1, "GET": 2}
_UNBOUNDED = 1 << 60


def cheapest(entries: Sequence[Entry]) -> int:
    """Return the index of the entry that costs its host least: by method, request body, `max_bytes`.

    Among equal ones, it is the one with the fewest failed attempts, because its URL may be the cause.
    """

    def cost(place: int) -> tuple[int, int, int, int]:
        request, max_bytes = entries[place].request, entries[place].fetch.max_bytes
        inline = len(request.body or request.body_base64 or "")
        return (
            _METHODS.get(request.method, len(_METHODS)),
            inline if request.body_file is None else _UNBOUNDED,
            _UNBOUNDED if max_bytes is None else max_bytes,
            entries[place].attempts,
        )

    return min(range(len(entries)), key=cost)
