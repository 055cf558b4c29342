"""Reads the messages of the inbox and the arguments of arq jobs into fetches, by the same rules. Pure.

A message of the inbox is a fetch as in a list of fetches (a URL, or JSON), or a JSON object
`{"batch": …, "fetches": […]}`. An arq job has the same arguments. The `v` of an object, or of a job, is the
version of these rules that it needs.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec

from fetchfleet.jobs.contract.entry import serialize_new_entry
from fetchfleet.jobs.contract.fetch_list import SPACE
from fetchfleet.jobs.contract.field_checks import Dests
from fetchfleet.jobs.contract.ids import BATCH_ID_CHARS, fetch_id, is_batch_id
from fetchfleet.jobs.contract.model import TOO_DEEP, Fetch, as_fetch, decode_fetch
from fetchfleet.jobs.errors import InvalidFetchError, NewerMessageError

MAX_DOOR_BYTES = 8 << 20
"""The most that one message of the inbox, or one arq job, may hold."""

MESSAGE_VERSION = 1
"""The newest known version of a message; a change that older workers would refuse raises it."""

T = TypeVar("T")

# The JSON Schema beyond the types; check_batch makes the check, with a better error.
_ITEM = {"anyOf": [{"$ref": "#/$defs/Fetch"}, {"type": "string"}]}
_VERSION = {"maximum": MESSAGE_VERSION}
_BATCH = {"pattern": f"^[0-9a-f]{{{BATCH_ID_CHARS}}}$"}


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Many fetches in one message of the inbox.

    fetches: each a URL, or an object as in fetch.json; one that is refused refuses the message.
    batch: 16 hex digits of your own, for a batch that can be found again; pushed twice, it is enqueued once.
    v: the version of this contract that is needed to read it; workers that do not know it leave it to others.
    """

    fetches: list[Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema=_ITEM)]]
    batch: Annotated[str | None, msgspec.Meta(extra_json_schema=_BATCH)] = None
    v: Annotated[int, msgspec.Meta(ge=1, extra_json_schema=_VERSION)] = 1

    def __post_init__(self) -> None:
        """Check the batch id."""
        check_batch(self.batch)


class Order(msgspec.Struct, frozen=True):
    """The fetches of a message; batch is None if a new one may be made."""

    fetches: list[Fetch]
    batch: str | None = None


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_envelope = msgspec.json.Decoder(Envelope)
_url = msgspec.json.Decoder(Fetch | str)


def read_message(message: bytes) -> Order:
    """Parse a message of the inbox; raises InvalidFetchError or NewerMessageError."""
    if len(message) > MAX_DOOR_BYTES:
        raise InvalidFetchError(f"the message has {len(message)} bytes, {MAX_DOOR_BYTES} are the most")
    try:
        text = message.decode().strip(SPACE)
    except UnicodeDecodeError:
        raise InvalidFetchError("neither JSON nor a URL (a pickle is never loaded)") from None
    if not text.startswith("{"):
        return Order([_whole(text)])
    try:
        fields = _fields.decode(text)
        # First: the rest may be in a form that this version does not know.
        check_version(msgspec.json.decode(fields.get("v", b"1")))
        if "fetches" in fields:
            envelope = _envelope.decode(text)
            return Order(_numbered(envelope.fetches, _of_raw), envelope.batch)
    except msgspec.DecodeError as error:
        raise InvalidFetchError(str(error)) from None
    except RecursionError:
        raise InvalidFetchError(TOO_DEEP) from None
    if "v" in fields:  # the version is the message's, not a field of the fetch
        del fields["v"]
        return Order([_fits(decode_fetch(msgspec.json.encode(fields)))])
    return Order([_fits(decode_fetch(text))])


def read_arguments(what: Any, batch: Any = None) -> Order:
    """Parse the arguments of an arq job; raises InvalidFetchError."""
    check_batch(batch)
    if isinstance(what, list):
        return Order(_numbered(what, _whole), batch)
    return Order([_whole(what)], batch)


def check_version(v: Any) -> None:
    """Raise NewerMessageError for an unknown version, InvalidFetchError for an invalid one."""
    if not isinstance(v, int) or isinstance(v, bool) or v < 1:
        raise InvalidFetchError("v: is not a whole number from 1")
    if v > MESSAGE_VERSION:
        raise NewerMessageError(f"v: is above {MESSAGE_VERSION}, the newest version that is known here")


def check_batch(batch: Any) -> None:
    """Raise InvalidFetchError unless it is None or a batch id."""
    if batch is not None and not (isinstance(batch, str) and is_batch_id(batch)):
        shown = msgspec.json.encode(batch).decode()[:60] if isinstance(batch, str) else type(batch).__name__
        raise InvalidFetchError(f"batch: {shown} is not a string of {BATCH_ID_CHARS} hex digits")


def _numbered(items: Sequence[T], read: Callable[[T], Fetch]) -> list[Fetch]:
    """Read the fetches; an error names the item by its place, from 0."""
    fetches: list[Fetch] = []
    dests = Dests("item")
    for place, item in enumerate(items):
        try:
            fetch = read(item)
            if fetch.dest is not None:
                dests.add(place, fetch.dest, fetch.if_exists, fetch.key)
            fetches.append(fetch)
        except InvalidFetchError as error:
            raise InvalidFetchError(f"item {place}: {error}") from None
    return fetches


def _whole(item: Any) -> Fetch:
    return _fits(as_fetch(item))


def _of_raw(item: msgspec.Raw) -> Fetch:
    raw = bytes(item)
    if raw.lstrip().startswith(b"{"):
        return _fits(decode_fetch(raw))
    try:
        return _whole(_url.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidFetchError(str(error)) from None


_ANY_ID = fetch_id("0" * BATCH_ID_CHARS, 0)


def _fits(fetch: Fetch) -> Fetch:
    """Return the fetch if it can be serialized: one that cannot must not block the rest of its message."""
    serialize_new_entry(_ANY_ID, fetch)
    return fetch
