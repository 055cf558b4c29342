"""Batch ids, fetch ids, and the names made of them. Pure.

A batch id is 16 random hex digits. A fetch id is its batch's id, a hyphen and the fetch's place
in the batch as 8 hex digits, so it is unique, sortable, and names the batch of its result. The ids of batches
from a named inbox begin with that inbox's prefix, and a new id of any other batch does not begin with `f`.
"""

import hashlib
import re

BATCH_ID_CHARS = 16
FETCH_ID_CHARS = BATCH_ID_CHARS + 1 + 8
MAX_BATCH_FETCHES = 16**8

RESERVED_INBOX_NAMES = frozenset({"taken", "newer"})
"""Not names of inboxes: `ff:inbox:taken` and `ff:inbox:newer` belong to the shared inbox."""

_INBOX_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_INBOX_PREFIX_CHARS = 8
_BATCH_ID = re.compile(r"[0-9a-f]{16}")
_FETCH_ID = re.compile(r"[0-9a-f]{16}-[0-9a-f]{8}")


def is_batch_id(text: str) -> bool:
    """Return whether the text is a well-formed batch id."""
    return _BATCH_ID.fullmatch(text) is not None


def batch_id_for(text: str, inbox: str = "") -> str:
    """Derive a batch id from any text: the same id for the same text. inbox: the name of its inbox."""
    prefix = inbox_prefix(inbox) if inbox else ""
    return (prefix + hashlib.sha256(text.encode()).hexdigest())[:BATCH_ID_CHARS]


def is_inbox_name(text: str) -> bool:
    """Return whether an inbox may have this name."""
    return _INBOX_NAME.fullmatch(text) is not None and text not in RESERVED_INBOX_NAMES


def inbox_prefix(name: str) -> str:
    """Return the beginning of every batch id of a named inbox: `f` and 7 hex digits."""
    return "f" + hashlib.sha256(name.encode()).hexdigest()[: _INBOX_PREFIX_CHARS - 1]


def inbox_prefix_of(batch_id: str) -> str:
    """Return the inbox prefix of a batch id, "" if it has none."""
    return batch_id[:_INBOX_PREFIX_CHARS] if batch_id.startswith("f") else ""


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
    return f"{fetch_id[:BATCH_ID_CHARS]}/{fetch_id[-8:-2]}/{fetch_id}"
