"""Parsers of inbox messages and arq job arguments, by the same rules. Pure.

An inbox message is a URL, a fetch as JSON, or an object `{"batch": …, "fetches": […]}`. An arq job has the
same arguments. The `v` of an object or a job is the version of these rules that it needs.

A named inbox, whose producer need not be trusted, accepts the same messages. It also accepts batches in
parts, requests for receipts, and `{"cancel": BATCH}`. Its batch IDs begin with the inbox's prefix (ids.py).
"""

import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from fetchfleet.jobs.contract.checks.field_checks import Dests
from fetchfleet.jobs.contract.entry import serialize_new_entry
from fetchfleet.jobs.contract.fetch import CONTRACT_VERSION, TOO_DEEP, Fetch, as_fetch, decode_fetch
from fetchfleet.jobs.contract.fetch_list import SPACE
from fetchfleet.jobs.contract.ids import (
    BATCH_ID_CHARS,
    MAX_BATCH_FETCHES,
    fetch_id,
    inbox_prefix,
    is_batch_id,
)
from fetchfleet.jobs.contract.webhooks import notify_url
from fetchfleet.jobs.errors import InvalidFetchError, NewerMessageError

MAX_INPUT_BYTES = 8 << 20
"""Largest inbox message or arq job."""

MESSAGE_VERSION = CONTRACT_VERSION
"""Newest known version of a message. A change that older workers would refuse increments it."""

T = TypeVar("T")

# For the JSON Schema only: check_batch and check_version have better errors than msgspec.
_ITEM = {"anyOf": [{"$ref": "#/$defs/Fetch"}, {"type": "string"}]}
_VERSION = {"maximum": MESSAGE_VERSION}
_BATCH = {"pattern": f"^[0-9a-f]{{{BATCH_ID_CHARS}}}$"}


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Many fetches in one inbox message."""

    fetches: list[Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema=_ITEM)]]
    """Fetches, each a URL or an object as in fetch.json. An invalid one refuses the whole message."""
    batch: Annotated[str | None, msgspec.Meta(extra_json_schema=_BATCH)] = None
    """Batch ID of your choice, 16 hex digits. A message that is pushed again under it is enqueued once."""
    v: Annotated[int, msgspec.Meta(ge=1, extra_json_schema=_VERSION)] = 1
    """Version of this contract that the message needs. Workers that do not know it leave it to newer ones."""
    notify: str | None = None
    """URL that receives a signed POST when the batch has ended; in an inbox it needs `batch`."""

    def __post_init__(self) -> None:
        """Check the batch ID and the URL."""
        check_batch(self.batch)
        notify_url(self.notify)


class Order(msgspec.Struct, frozen=True):
    """The fetches of a message."""

    fetches: list[Fetch]
    batch: str | None = None
    """ID of the batch that they become; None: a generated one."""
    notify: str = ""
    """URL of the batch's webhook; "" without one."""

    def check_inbox_notify(self) -> None:
        """Raise InvalidFetchError for a webhook of an inbox message that does not name its batch."""
        if self.notify and self.batch is None:
            raise InvalidFetchError("notify: needs a batch; messages without one share a generated batch")


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_envelope = msgspec.json.Decoder(Envelope)
_url = msgspec.json.Decoder(Fetch | str)


def read_message(message: bytes, known_version: int | None = None) -> Order:
    """Parse a message of the shared inbox; raises InvalidFetchError or NewerMessageError.

    known_version: newest version that the reader knows, MESSAGE_VERSION if None.
    """
    if len(message) > MAX_INPUT_BYTES:
        raise InvalidFetchError(f"the message has {len(message)} bytes; the limit is {MAX_INPUT_BYTES}")
    try:
        text = message.decode().strip(SPACE)
    except UnicodeDecodeError:
        raise InvalidFetchError("not UTF-8, so neither JSON nor a URL (a pickle is never loaded)") from None
    if not text.startswith("{"):
        return Order([_checked_fetch(text)])
    try:
        fields = _fields.decode(text)
        # Before the rest, which may be in a form that this version does not know.
        check_version(msgspec.json.decode(fields.get("v", b"1")), known_version)
        if "fetches" in fields:
            envelope = _envelope.decode(text)
            return Order(read_items(envelope.fetches), envelope.batch, notify_url(envelope.notify))
    except msgspec.DecodeError as error:
        raise InvalidFetchError(str(error)) from None
    except RecursionError:
        raise InvalidFetchError(TOO_DEEP) from None
    if "v" in fields:  # the version is the message's, not a field of the fetch
        del fields["v"]
        return Order([_serializable(decode_fetch(msgspec.json.encode(fields)))])
    return Order([_serializable(decode_fetch(text))])


def fields_of(message: bytes) -> dict[str, msgspec.Raw]:
    """Return the raw fields of a message of any version; {} if it is not a JSON object."""
    try:
        return _fields.decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def read_items(items: Sequence[msgspec.Raw]) -> list[Fetch]:
    """Parse the fetches of a message; raises InvalidFetchError, which names the item by its place, from 0."""
    return _parse_items(items, _parse_raw)


def read_arguments(fetches: Any, batch: Any = None, notify: Any = None) -> Order:
    """Parse the arguments of an arq job: a fetch or a list of them; raises InvalidFetchError."""
    check_batch(batch)
    webhook = notify_url(notify)
    is_list = isinstance(fetches, list)
    parsed = _parse_items(fetches, _checked_fetch) if is_list else [_checked_fetch(fetches)]
    return Order(parsed, batch, webhook)


def check_version(v: Any, known_version: int | None = None) -> None:
    """Raise NewerMessageError for a version above the known one, InvalidFetchError for an invalid one.

    known_version: newest version that the reader knows, MESSAGE_VERSION if None.
    """
    known = MESSAGE_VERSION if known_version is None else known_version
    if not isinstance(v, int) or isinstance(v, bool) or v < 1:
        raise InvalidFetchError("v: must be a whole number of at least 1")
    if v > known:
        raise NewerMessageError(f"v: {v} is newer than {known}, the newest version that this worker knows")


def check_batch(batch: Any) -> None:
    """Raise InvalidFetchError unless it is None or a batch ID."""
    if batch is not None and not (isinstance(batch, str) and is_batch_id(batch)):
        shown = msgspec.json.encode(batch).decode()[:60] if isinstance(batch, str) else type(batch).__name__
        raise InvalidFetchError(f"batch: {shown} is not a string of {BATCH_ID_CHARS} lower-case hex digits")


def _parse_items(items: Sequence[T], parse: Callable[[T], Fetch]) -> list[Fetch]:
    """Parse the fetches; an error names the item by its place, from 0."""
    fetches: list[Fetch] = []
    dests = Dests("item")
    for place, item in enumerate(items):
        try:
            fetch = parse(item)
            if fetch.dest is not None:
                dests.add(place, fetch.dest, fetch.if_exists, fetch.key)
            fetches.append(fetch)
        except InvalidFetchError as error:
            raise InvalidFetchError(f"item {place}: {error}") from None
    return fetches


def _checked_fetch(item: Any) -> Fetch:
    return _serializable(as_fetch(item))


def _parse_raw(item: msgspec.Raw) -> Fetch:
    raw = bytes(item)
    if raw.lstrip().startswith(b"{"):
        return _serializable(decode_fetch(raw))
    try:
        return _checked_fetch(_url.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidFetchError(str(error)) from None


_ANY_ID = fetch_id("0" * BATCH_ID_CHARS, 0)


def _serializable(fetch: Fetch) -> Fetch:
    """Return the fetch; raise InvalidFetchError if it cannot be serialized, before anything is enqueued."""
    serialize_new_entry(_ANY_ID, fetch)
    return fetch


PART_FETCHES = 500
"""The maximum number of fetches in a part. The places of part n begin at (n - 1) * PART_FETCHES."""

MAX_PARTS = MAX_BATCH_FETCHES // PART_FETCHES

_RECEIPT_NAME = re.compile(r"[A-Za-z0-9-]{1,32}")
_RECEIPT_SCHEMA = {"pattern": f"^{_RECEIPT_NAME.pattern}$"}

BatchId = Annotated[str, msgspec.Meta(extra_json_schema=_BATCH)]
ReceiptName = Annotated[str, msgspec.Meta(extra_json_schema=_RECEIPT_SCHEMA)]
Version = Annotated[int, msgspec.Meta(ge=1, extra_json_schema=_VERSION)]
Item = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema=_ITEM)]


class PushedBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Many fetches in one message of a named inbox."""

    fetches: list[Item]
    """Fetches, each a URL or an object as in fetch.json. An invalid one refuses the whole message."""
    batch: BatchId | None = None
    """Batch ID: 16 hex digits that begin with the inbox's prefix. Pushed again, it is enqueued once."""
    v: Version = 1
    """Version of this contract that the message needs. Workers that do not know it leave it to newer ones."""
    part: Annotated[int, msgspec.Meta(ge=1, le=MAX_PARTS)] | None = None
    """Number of this part, from 1, of a batch that is pushed in order in parts of 1 to 500 fetches."""
    last: bool = False
    """True for the last part of a batch."""
    receipt: ReceiptName | None = None
    """Name of a receipt, 1 to 32 letters, digits or hyphens; also written to ff:batch:BATCH:receipt:NAME."""
    when_full: Literal["wait", "refuse"] = "wait"
    """Behaviour at a backlog limit of the fleet: the message waits, or is refused."""
    notify: str | None = None
    """URL that receives a signed POST when the batch has ended; needs `batch`. The first one stays."""

    def __post_init__(self) -> None:
        """Check the values beyond their types."""
        check_batch(self.batch)
        notify_url(self.notify)
        _check_receipt(self.receipt)
        if self.part is None and self.last:
            raise InvalidFetchError("last: needs a part")
        if self.part is not None and self.batch is None:
            raise InvalidFetchError("part: needs a batch")
        if self.part is not None and not 1 <= len(self.fetches) <= PART_FETCHES:
            raise InvalidFetchError(f"part: must have 1 to {PART_FETCHES} fetches, got {len(self.fetches)}")


class Cancellation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message that cancels a batch of its named inbox."""

    cancel: BatchId
    """ID of the batch."""
    receipt: ReceiptName | None = None
    """Name of a receipt, 1 to 32 letters, digits or hyphens; also written to ff:batch:BATCH:receipt:NAME."""
    v: Version = 1
    """Version of this contract that the message needs. Workers that do not know it leave it to newer ones."""

    def __post_init__(self) -> None:
        """Check the batch ID and the name of the receipt."""
        if not is_batch_id(self.cancel):
            raise InvalidFetchError(f"cancel: is not a string of {BATCH_ID_CHARS} lower-case hex digits")
        _check_receipt(self.receipt)


class PushedOrder(Order, frozen=True):
    """The fetches of a message of a named inbox; `part`, `last` and `receipt` as in PushedBatch."""

    part: int | None = None
    last: bool = False
    receipt: str | None = None
    may_wait: bool = True
    """False: refuse the message at a backlog limit."""


_batch = msgspec.json.Decoder(PushedBatch)
_cancellation = msgspec.json.Decoder(Cancellation)


def read_pushed(message: bytes, inbox: str, known_version: int | None = None) -> PushedOrder | Cancellation:
    """Parse a message of a named inbox; raises InvalidFetchError or NewerMessageError.

    known_version: newest version that the reader knows, MESSAGE_VERSION if None.
    """
    fields = fields_of(message) if len(message) <= MAX_INPUT_BYTES else {}
    if not fields.keys() & {"fetches", "cancel"}:
        return PushedOrder(read_message(message, known_version).fetches)
    try:
        # Before the rest, which may be in a form that this version does not know.
        check_version(msgspec.json.decode(fields.get("v", b"1")), known_version)
        if "cancel" in fields:
            cancellation = _cancellation.decode(message)
            _check_prefix("cancel", cancellation.cancel, inbox)
            return cancellation
        pushed = _batch.decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidFetchError(str(error)) from None
    if pushed.batch is not None:
        _check_prefix("batch", pushed.batch, inbox)
    fetches, may_wait = read_items(pushed.fetches), pushed.when_full == "wait"
    place = pushed.part, pushed.last, pushed.receipt
    return PushedOrder(fetches, pushed.batch, notify_url(pushed.notify), *place, may_wait)


def scoped_key(inbox: str, key: str) -> str:
    """Return a fetch's `key` within a named inbox; no fetch of another inbox or producer can have it."""
    return f"{inbox}\0{key}"  # the key of a fetch has no control characters (field_checks.py)


class MessageRefusal(StrEnum):
    """The reason of a refused message. The list is closed."""

    INVALID = "invalid"
    BATCH_EXISTS = "batch_exists"
    BATCH_CANCELLED = "batch_cancelled"
    BATCH_LOST = "batch_lost"
    UNKNOWN_BATCH = "unknown_batch"
    FLEET_FULL = "fleet_full"
    REDIS_FULL = "redis_full"


class InboxReceipt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The receipt of a message that names its batch."""

    batch: str
    """Batch ID of the message."""
    part: int | None = None
    """Part number of the message; null without one."""
    accepted: int = 0
    """Number of fetches of the message that are in the batch, or have the key of an earlier fetch."""
    repeats: dict[str, str] = {}
    """IDs of fetches whose key was taken, each with the ID of the earlier fetch."""
    refused: MessageRefusal | None = None
    """Reason of a refused message; null if it was carried out or waits."""
    note: str = ""
    """Exact error."""
    waits: bool = False
    """True if the message waits at a backlog limit; another receipt will replace this one."""


encode_receipt = msgspec.json.Encoder().encode
decode_receipt = msgspec.json.Decoder(InboxReceipt).decode


class ReceiptAddress(msgspec.Struct, frozen=True):
    """The batch, name and part of a message's receipt."""

    batch: str
    name: str = ""
    """Name that the message gives the receipt; "" for the latest one of the batch."""
    part: int | None = None


def address_of(message: bytes, inbox: str) -> ReceiptAddress | None:
    """Return the address of the receipt of an invalid message; None if no valid batch ID can be read."""
    values: dict[str, Any] = {}
    for name, raw in fields_of(message).items():
        if name in {"batch", "cancel", "receipt", "part"}:
            try:
                values[name] = msgspec.json.decode(raw)
            except (msgspec.DecodeError, RecursionError):
                return None
    batch, receipt = values.get("batch", values.get("cancel")), values.get("receipt")
    part = values.get("part")
    if not (isinstance(batch, str) and is_batch_id(batch) and batch.startswith(inbox_prefix(inbox))):
        return None
    is_part = isinstance(part, int) and not isinstance(part, bool) and 1 <= part <= MAX_PARTS
    name = receipt if isinstance(receipt, str) and _RECEIPT_NAME.fullmatch(receipt) else ""
    return ReceiptAddress(batch, name, part if is_part else None)


def _check_receipt(name: str | None) -> None:
    if name is not None and not _RECEIPT_NAME.fullmatch(name):
        raise InvalidFetchError("receipt: must be 1 to 32 letters, digits or hyphens")


def _check_prefix(field: str, batch_id: str, inbox: str) -> None:
    prefix = inbox_prefix(inbox)
    if not batch_id.startswith(prefix):
        raise InvalidFetchError(
            f"{field}: {batch_id} does not begin with {prefix}, the prefix of the inbox {inbox}"
        )
