"""Which fetch is sent to a host that may be ill. Pure."""

from collections.abc import Sequence

from fetchfleet.jobs.contract.entry import Entry


def cheapest(entries: Sequence[Entry]) -> int:
    """Which of the entries makes the best probe: one that asks little of a host that may be ill."""
    return min(range(len(entries)), key=lambda place: _cost(entries[place]))


def _cost(entry: Entry) -> tuple[int, int, int]:
    request, most = entry.request, entry.fetch.max_bytes
    method = _PROBE_METHODS.get(request.method, len(_PROBE_METHODS))
    sent = 1 << 60 if request.body_file is not None else len(request.body or request.body_base64 or "")
    return method, sent, most if most is not None else 1 << 60


_PROBE_METHODS = {"HEAD": 0, "OPTIONS": 1, "GET": 2}
