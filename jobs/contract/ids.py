"""Batch IDs, fetch IDs, and names derived from them. Pure.

A batch ID is 16 hex digits. A fetch ID is the batch ID, a hyphen, and the place of the fetch in the batch as
8 hex digits. Batch IDs of a named inbox begin with the inbox's prefix. Other generated batch IDs do not begin
with `f`.
"""

import hashlib
import re

BATCH_ID_CHARS = 16
FETCH_ID_CHARS = BATCH_ID_CHARS + 1 + 8
MAX_BATCH_FETCHES = 16**8

RESERVED_INBOX_NAMES = frozenset({"taken", "newer"})
"""Not allowed as inbox names: `ff:inbox:taken` and `ff:inbox:newer` are keys of the shared inbox."""

_INBOX_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_INBOX_PREFIX_CHARS = 8
_BATCH_ID = re.compile(r"[0-9a-f]{16}")
_POSITION = re.compile(r"([0-9]{1,20})(?:-([0-9]{1,20}))?", re.ASCII)
_FETCH_ID = re.compile(r"[0-9a-f]{16}-[0-9a-f]{8}")


def is_batch_id(text: str) -> bool:
    """Return whether the text is a well-formed batch ID."""
    return _BATCH_ID.fullmatch(text) is not None


def checked_batch_id(batch_id: str) -> str:
    """Return the batch ID; raise ValueError if it is malformed."""
    if not is_batch_id(batch_id):
        raise ValueError(f"{batch_id!r} is not a batch ID ({BATCH_ID_CHARS} lower-case hex digits)")
    return batch_id


def batch_id_for(text: str, inbox: str = "") -> str:
    """Return a batch ID derived from a text of your own: the same text always gives the same ID.

    inbox: name of the named inbox to which the batch will be submitted, if any.
    """
    prefix = inbox_prefix(inbox) if inbox else ""
    return (prefix + hashlib.sha256(text.encode()).hexdigest())[:BATCH_ID_CHARS]


def is_inbox_name(text: str) -> bool:
    """Return whether the text is a valid name of an inbox: 1 to 32 lower-case letters, digits or hyphens."""
    return _INBOX_NAME.fullmatch(text) is not None and text not in RESERVED_INBOX_NAMES


def inbox_prefix(name: str) -> str:
    """Return the prefix of the batch IDs of a named inbox: `f` and 7 hex digits."""
    return "f" + hashlib.sha256(name.encode()).hexdigest()[: _INBOX_PREFIX_CHARS - 1]


def inbox_prefix_of(batch_id: str) -> str:
    """Return the inbox prefix of a batch ID, "" if it has none."""
    return batch_id[:_INBOX_PREFIX_CHARS] if batch_id.startswith("f") else ""


def is_fetch_id(text: str) -> bool:
    """Return whether the text is a well-formed fetch ID."""
    return _FETCH_ID.fullmatch(text) is not None


def is_position(text: str) -> bool:
    """Return whether the text is the ID of a stream record, such as 1700000000000-0."""
    match = _POSITION.fullmatch(text)
    return match is not None and max(int(match[1]), int(match[2] or 0)) < 1 << 64


def fetch_id(batch_id: str, place: int) -> str:
    """Return the ID of the fetch at a place in the batch, from 0."""
    return f"{batch_id}-{place:08x}"


def batch_of(fetch_id: str) -> str:
    """Return the batch ID of a fetch."""
    return fetch_id[:BATCH_ID_CHARS]


def place_of(fetch_id: str) -> int:
    """Return the place of a fetch in its batch, from 0."""
    return int(fetch_id[BATCH_ID_CHARS + 1 :], 16)


def path_of(fetch_id: str) -> str:
    """Return the path of a body without a `dest`: a folder for each batch, with folders of 256 files."""
    return f"{fetch_id[:BATCH_ID_CHARS]}/{fetch_id[-8:-2]}/{fetch_id}"
