"""Batch ids, fetch ids, and the names made of them. Pure.

A batch id is 16 random hex digits. A fetch id is its batch's id, a hyphen and the fetch's place
in the batch as 8 hex digits, so it is unique, sortable, and names the batch of its result.
"""

import hashlib
import re

BATCH_ID_CHARS = 16
FETCH_ID_CHARS = BATCH_ID_CHARS + 1 + 8
MAX_BATCH_FETCHES = 16**8

_BATCH_ID = re.compile(r"[0-9a-f]{16}")
_FETCH_ID = re.compile(r"[0-9a-f]{16}-[0-9a-f]{8}")


def is_batch_id(text: str) -> bool:
    """Return whether the text is a well-formed batch id."""
    return _BATCH_ID.fullmatch(text) is not None


def batch_id_for(text: str) -> str:
    """Derive a batch id from any text: the same id for the same text."""
    return hashlib.sha256(text.encode()).hexdigest()[:BATCH_ID_CHARS]


def is_fetch_id(text: str) -> bool:
    """Return whether the text is a well-formed fetch id."""
    return _FETCH_ID.fullmatch(text) is not None


def fetch_id(batch_id: str, place: int) -> str:
    """Return the id of the fetch at that place (from 0) of the batch."""
    return f"{batch_id}-{place:08x}"


def batch_of(fetch_id: str) -> str:
    """Return the batch id of a fetch."""
    return fetch_id[:BATCH_ID_CHARS]


def place_of(fetch_id: str) -> int:
    """Return the place of a fetch in its batch, from 0."""
    return int(fetch_id[BATCH_ID_CHARS + 1 :], 16)


def path_of(fetch_id: str) -> str:
    """Return the path of a body without a `dest`: a folder per batch, in it folders of 256 files each."""
    return f"{batch_of(fetch_id)}/{fetch_id[-8:-2]}/{fetch_id}"
