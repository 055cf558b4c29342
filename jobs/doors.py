"""What the doors other than Python's are handed, read into fetches; the same rules at each.

A message of the inbox is a fetch as in a list of fetches (a URL, or JSON), or a JSON object
`{"batch": …, "fetches": […]}`. The arq door takes the same things as arguments.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from jobs.errors import InvalidFetchError
from jobs.lines import read_fetch
from jobs.model import Fetch, as_fetch
from jobs.names import BATCH_ID_CHARS, is_batch_id

MAX_DOOR_BYTES = 8 << 20
"""The most that one message of the inbox may hold."""


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Many fetches in one message. batch: 16 hex digits, for a batch that can be found again."""

    fetches: list[Fetch | str]
    batch: str | None = None

    def __post_init__(self) -> None:
        """Check the batch id."""
        check_batch(self.batch)


class Order(msgspec.Struct, frozen=True):
    """What somebody wants fetched; batch is None if it may be any."""

    fetches: list[Fetch]
    batch: str | None = None


_envelope = msgspec.json.Decoder(Envelope)


def read_message(message: bytes) -> Order:
    """The order that a message of the inbox stands for; raises InvalidFetchError."""
    try:
        text = message.decode().strip()
    except UnicodeDecodeError:
        raise InvalidFetchError("neither JSON nor a URL (a pickle is never loaded)") from None
    if text.startswith("{") and _is_envelope(text):
        try:
            envelope = _envelope.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidFetchError(str(error)) from None
        return Order(numbered(envelope.fetches), envelope.batch)
    return Order([read_fetch(text)])


def read_arguments(what: Any, batch: Any = None) -> Order:
    """The order that the arguments of an arq job stand for; raises InvalidFetchError."""
    check_batch(batch)
    if isinstance(what, str | dict):
        return Order([as_fetch(what)], batch)
    if not isinstance(what, Sequence):
        raise InvalidFetchError(f"expected a fetch or a list of them, found {type(what).__name__}")
    return Order(numbered(what), batch)


def check_batch(batch: Any) -> None:
    """Raises InvalidFetchError for what is given and is no batch id."""
    if batch is not None and not (isinstance(batch, str) and is_batch_id(batch)):
        raise InvalidFetchError(f"batch: {batch!r} is not {BATCH_ID_CHARS} hex digits")


def numbered(items: Sequence[Any]) -> list[Fetch]:
    """The fetches; an error names the item by its place, from 0."""
    fetches: list[Fetch] = []
    for place, item in enumerate(items):
        try:
            fetches.append(as_fetch(item))
        except (InvalidFetchError, TypeError, ValueError) as error:
            raise InvalidFetchError(f"item {place}: {error}") from None
    return fetches


def _is_envelope(text: str) -> bool:
    """Whether the JSON object has `fetches`; what is no JSON has not, and is told so as a fetch."""
    try:
        return "fetches" in msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        return False
