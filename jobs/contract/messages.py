"""Reads the messages of the inbox and the arguments of arq jobs into fetches, by the same rules. Pure.

A message of the inbox is a fetch as in a list of fetches (a URL, or JSON), or a JSON object
`{"batch": …, "fetches": […]}`. An arq job has the same arguments. The `v` of an object, or of a job, is the
version of these rules that it needs.

A named inbox, whose pusher need not be trusted, takes what the shared one takes, and also batches in parts,
requests for receipts, and `{"cancel": BATCH}`. Its batch ids begin with the prefix of its name (ids.py).
"""

import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from fetchfleet.jobs.contract.entry import serialize_new_entry
from fetchfleet.jobs.contract.fetch_list import SPACE
from fetchfleet.jobs.contract.field_checks import Dests
from fetchfleet.jobs.contract.ids import (
    BATCH_ID_CHARS,
    MAX_BATCH_FETCHES,
    fetch_id,
    inbox_prefix,
    is_batch_id,
)
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


def read_message(message: bytes, known_version: int | None = None) -> Order:
    """Parse a message of the inbox; raises InvalidFetchError or NewerMessageError.

    known_version: the newest version that the reader knows, MESSAGE_VERSION if None.
    """
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
        check_version(msgspec.json.decode(fields.get("v", b"1")), known_version)
        if "fetches" in fields:
            envelope = _envelope.decode(text)
            return Order(read_items(envelope.fetches), envelope.batch)
    except msgspec.DecodeError as error:
        raise InvalidFetchError(str(error)) from None
    except RecursionError:
        raise InvalidFetchError(TOO_DEEP) from None
    if "v" in fields:  # the version is the message's, not a field of the fetch
        del fields["v"]
        return Order([_fits(decode_fetch(msgspec.json.encode(fields)))])
    return Order([_fits(decode_fetch(text))])


def fields_of(message: bytes) -> dict[str, msgspec.Raw]:
    """Return the fields of a message that is a JSON object, of any version; {} for any other message."""
    try:
        return _fields.decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def read_items(items: Sequence[msgspec.Raw]) -> list[Fetch]:
    """Parse the fetches of a message; raises InvalidFetchError, which names the item by its place, from 0."""
    return _numbered(items, _of_raw)


def read_arguments(what: Any, batch: Any = None) -> Order:
    """Parse the arguments of an arq job; raises InvalidFetchError."""
    check_batch(batch)
    if isinstance(what, list):
        return Order(_numbered(what, _whole), batch)
    return Order([_whole(what)], batch)


def check_version(v: Any, known_version: int | None = None) -> None:
    """Raise NewerMessageError for an unknown version, InvalidFetchError for an invalid one.

    known_version: MESSAGE_VERSION if None.
    """
    known = MESSAGE_VERSION if known_version is None else known_version
    if not isinstance(v, int) or isinstance(v, bool) or v < 1:
        raise InvalidFetchError("v: is not a whole number from 1")
    if v > known:
        raise NewerMessageError(f"v: is above {known}, the newest version that is known here")


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


PART_FETCHES = 500
"""The most fetches in a part. Those of part n have the places from (n - 1) * PART_FETCHES on."""

MAX_PARTS = MAX_BATCH_FETCHES // PART_FETCHES

_RECEIPT_NAME = re.compile(r"[A-Za-z0-9-]{1,32}")
_RECEIPT_SCHEMA = {"pattern": f"^{_RECEIPT_NAME.pattern}$"}

BatchId = Annotated[str, msgspec.Meta(extra_json_schema=_BATCH)]
ReceiptName = Annotated[str, msgspec.Meta(extra_json_schema=_RECEIPT_SCHEMA)]
Version = Annotated[int, msgspec.Meta(ge=1, extra_json_schema=_VERSION)]
Item = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema=_ITEM)]


class PushedBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Many fetches in one message of a named inbox.

    fetches: each a URL, or an object as in fetch.json; one that is refused refuses the message.
    batch: 16 hex digits that begin with the prefix of the inbox; pushed twice, it is enqueued once.
    v: the version of this contract that is needed to read it; workers that do not know it leave it to others.
    part: the number of this part, from 1, of a batch in parts of 1 to 500 fetches, pushed in their order.
    last: this part is the last one of its batch.
    receipt: 1 to 32 letters, digits or hyphens: the receipt is also written to ff:batch:BATCH:receipt:NAME.
    when_full: whether the message waits at a limit of the fleet, or is refused.
    """

    fetches: list[Item]
    batch: BatchId | None = None
    v: Version = 1
    part: Annotated[int, msgspec.Meta(ge=1, le=MAX_PARTS)] | None = None
    last: bool = False
    receipt: ReceiptName | None = None
    when_full: Literal["wait", "refuse"] = "wait"

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        check_batch(self.batch)
        _check_receipt(self.receipt)
        if self.part is None and self.last:
            raise InvalidFetchError("last: is for a message with a part")
        if self.part is not None and self.batch is None:
            raise InvalidFetchError("part: needs a batch")
        if self.part is not None and not 1 <= len(self.fetches) <= PART_FETCHES:
            raise InvalidFetchError(f"part: has {len(self.fetches)} fetches, not 1 to {PART_FETCHES}")


class Cancellation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message that cancels a batch of the named inbox that it is pushed to.

    cancel: the id of the batch.
    receipt: 1 to 32 letters, digits or hyphens: the receipt is also written to ff:batch:BATCH:receipt:NAME.
    v: the version of this contract that is needed to read it; workers that do not know it leave it to others.
    """

    cancel: BatchId
    receipt: ReceiptName | None = None
    v: Version = 1

    def __post_init__(self) -> None:
        """Check the batch id and the name of the receipt."""
        if not is_batch_id(self.cancel):
            raise InvalidFetchError(f"cancel: is not a string of {BATCH_ID_CHARS} hex digits")
        _check_receipt(self.receipt)


class PushedOrder(Order, frozen=True):
    """An order of a named inbox. may_wait: False if it is to be refused at a limit."""

    part: int | None = None
    last: bool = False
    receipt: str | None = None
    may_wait: bool = True


_batch = msgspec.json.Decoder(PushedBatch)
_cancellation = msgspec.json.Decoder(Cancellation)


def read_pushed(message: bytes, inbox: str, known_version: int | None = None) -> PushedOrder | Cancellation:
    """Parse a message of the named inbox; raises InvalidFetchError or NewerMessageError.

    known_version: the newest version that the reader knows, MESSAGE_VERSION if None.
    """
    fields = fields_of(message) if len(message) <= MAX_DOOR_BYTES else {}
    if not fields.keys() & {"fetches", "cancel"}:
        return PushedOrder(read_message(message, known_version).fetches)
    try:
        # First: the rest may be in a form that this version does not know.
        check_version(msgspec.json.decode(fields.get("v", b"1")), known_version)
        if "cancel" in fields:
            cancellation = _cancellation.decode(message)
            _check_prefix("cancel", cancellation.cancel, inbox)
            return cancellation
        found = _batch.decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidFetchError(str(error)) from None
    if found.batch is not None:
        _check_prefix("batch", found.batch, inbox)
    fetches, may_wait = read_items(found.fetches), found.when_full == "wait"
    return PushedOrder(fetches, found.batch, found.part, found.last, found.receipt, may_wait)


def scoped_key(inbox: str, key: str) -> str:
    """Return the key under which a fetch of the inbox is known: no fetch from elsewhere can have it."""
    return f"{inbox}\0{key}"  # a key of a fetch holds no control character (field_checks.py)


class MessageRefusal(StrEnum):
    """The reason for which a message was refused; a closed list."""

    INVALID = "invalid"
    BATCH_EXISTS = "batch_exists"
    BATCH_CANCELLED = "batch_cancelled"
    BATCH_LOST = "batch_lost"
    UNKNOWN_BATCH = "unknown_batch"
    FLEET_FULL = "fleet_full"
    REDIS_FULL = "redis_full"


class InboxReceipt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The receipt of a message that names its batch: what became of the message.

    batch: that of the message.
    part: that of the message.
    accepted: how many fetches of the message are in the batch, or have the key of an earlier fetch.
    repeats: for each fetch whose key was taken its id, with the id of the earlier fetch.
    refused: why the message was refused; null if it was not.
    note: the exact error.
    waits: the message waits for room; another receipt will replace this one.
    """

    batch: str
    part: int | None = None
    accepted: int = 0
    repeats: dict[str, str] = {}
    refused: MessageRefusal | None = None
    note: str = ""
    waits: bool = False


encode_receipt = msgspec.json.Encoder().encode
decode_receipt = msgspec.json.Decoder(InboxReceipt).decode


class ReceiptAddress(msgspec.Struct, frozen=True):
    """The place of a message's receipt: its batch, the name it asks for, and its part."""

    batch: str
    name: str = ""
    part: int | None = None


def address_of(message: bytes, inbox: str) -> ReceiptAddress | None:
    """Return where the receipt of an invalid message belongs; None if the message does not say."""
    found: dict[str, Any] = {}
    for name, raw in fields_of(message).items():
        if name in {"batch", "cancel", "receipt", "part"}:
            try:
                found[name] = msgspec.json.decode(raw)
            except (msgspec.DecodeError, RecursionError):
                return None
    batch, receipt, part = found.get("batch", found.get("cancel")), found.get("receipt"), found.get("part")
    if not (isinstance(batch, str) and is_batch_id(batch) and batch.startswith(inbox_prefix(inbox))):
        return None
    is_part = isinstance(part, int) and not isinstance(part, bool) and 1 <= part <= MAX_PARTS
    name = receipt if isinstance(receipt, str) and _RECEIPT_NAME.fullmatch(receipt) else ""
    return ReceiptAddress(batch, name, part if is_part else None)


def _check_receipt(name: str | None) -> None:
    if name is not None and not _RECEIPT_NAME.fullmatch(name):
        raise InvalidFetchError("receipt: is not 1 to 32 letters, digits or hyphens")


def _check_prefix(field: str, batch_id: str, inbox: str) -> None:
    prefix = inbox_prefix(inbox)
    if not batch_id.startswith(prefix):
        raise InvalidFetchError(
            f"{field}: {batch_id} does not begin with {prefix}, as the batches of {inbox} do"
        )
