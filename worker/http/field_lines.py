"""Odd field lines of HTTP/1 response heads: what they mean if that is unambiguous. Pure.

A field that no part of the worker needs must not cost the body. Fields that frame the body are read strictly:
if two readers disagree on its length, one response can be smuggled into another. After an odd head the
connection must not be reused.
"""

import re
from collections.abc import Sequence

from fetchfleet.worker.http.wire import Header

FRAMING = frozenset({b"content-length", b"transfer-encoding"})

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # RFC 9110 §5.6.2
_VALUE = rb"[\t -\xff]*+"
_LINES = rb"(?:\r\n(?![Tt][Rr][Aa][Nn][Ss][Ff])" + _TOKEN + rb":" + _VALUE + rb")*+"
_CHUNKED = rb"\r\n[Tt][Rr][Aa][Nn][Ss][Ff][Ee][Rr]-[Ee][Nn][Cc][Oo][Dd][Ii][Nn][Gg]:[ \t]*[Cc]hunked[ \t]*"

PLAIN_HEAD = re.compile(
    rb"HTTP/1\.[01] [2-9][0-9][0-9](?: " + _VALUE + rb")?"
    rb"" + _LINES + rb"(?:" + _CHUNKED + _LINES + rb")?\r\n\r\n"
)
"""The head of a final response with nothing odd in it, as nearly all are."""

HTTP1 = b"HTTP/1."

HEAD_END = re.compile(rb"\n\r?\n")

_IS_TOKEN = re.compile(_TOKEN)
_NOT_IN_A_TOKEN = re.compile(rb"[^!#$%&'*+.^_`|~0-9A-Za-z-]")
_FOLD_OR_CONTROL = re.compile(rb"[\v\f\r\n]")
_INTERIM = re.compile(rb"HTTP/1\.[0-9] 1(?!01)[0-9]{2}\b")


class FramingError(Exception):
    """A head that two readers could read differently, and then disagree on where the body ends."""


def usable_fields(fields: Sequence[Header]) -> list[Header]:
    """Return the fields that have a valid name, in their order. Raises FramingError.

    fields: as they were sent, folds included; a line without a colon is a name that begins with a space.

    - Whitespace between a name and its colon is dropped (RFC 9112 §5.1).
    - Folds, line ends and controls in a value are read as a space (RFC 9110 §5.5, RFC 9112 §5.2). A NUL is
      refused: some readers end a value there.
    - `chunked` counts once, in however many lines it was sent; `identity` is no transfer coding.
    """
    usable: list[Header] = []
    for raw_name, raw_value in fields:
        name = raw_name.rstrip(b" \t")
        is_token = _IS_TOKEN.fullmatch(name) is not None
        bare = _NOT_IN_A_TOKEN.sub(b"", name).lower()
        frames = bare in FRAMING or (not (is_token or raw_value) and bare.startswith(tuple(FRAMING)))
        is_plain = is_token and name == raw_name and _FOLD_OR_CONTROL.search(raw_value) is None
        if (frames and not is_plain) or b"\0" in raw_name + raw_value:
            raise FramingError(f"odd field line {(raw_name + b':' + raw_value)[:100]!r}")
        if is_token:
            usable.append((name, _without_folds(raw_value)))
    return _with_one_framing(usable)


def _without_folds(value: bytes) -> bytes:
    """Return the value with a space in place of each fold and each control."""
    parts = [_FOLD_OR_CONTROL.sub(b" ", part).strip(b" \t") for part in value.split(b"\n")]
    return b" ".join(part for part in parts if part)


def _with_one_framing(fields: list[Header]) -> list[Header]:
    """Return the fields with one Transfer-Encoding if it means `chunked`, with none if it means none."""
    lines = [value.lower() for name, value in fields if name.lower() == b"transfer-encoding"]
    codings = [coding.strip(b" \t") for value in lines for coding in value.split(b",")]
    codings = [coding for coding in codings if coding]
    if lines in ([], [b"chunked"]) or not set(codings) <= {b"chunked", b"identity"}:
        return fields
    if b"chunked" in codings and codings[-1] != b"chunked":  # read to the end of the connection by some
        return fields
    if b"chunked" not in codings and any(name.lower() == b"content-length" for name, _ in fields):
        return fields
    others = [field for field in fields if field[0].lower() != b"transfer-encoding"]
    return [*others, (b"Transfer-Encoding", b"chunked")] if b"chunked" in codings else others


def repaired(received: bytes) -> tuple[bytes, bytes, bool]:
    """Return the bytes that a strict parser takes, those that must wait for more, and whether a head was odd.

    received: from the beginning of a head, interim or final; what follows a final head is left as it is, and
    so is what is no HTTP/1. Raises FramingError.
    """
    ready: list[bytes] = []
    at, odd = 0, False
    while received.startswith(HTTP1, at):
        end = HEAD_END.search(received, at)
        if end is None:
            return b"".join(ready), received[at:], odd
        strict, was_odd = _strict(received[at : end.end()])
        ready.append(strict)
        is_final, at, odd = _INTERIM.match(received, at) is None, end.end(), odd or was_odd
        if is_final:
            break
    else:
        if HTTP1.startswith(received[at : at + len(HTTP1)]):
            return b"".join(ready), received[at:], odd
    return b"".join((*ready, received[at:])), b"", odd


def _strict(head: bytes) -> tuple[bytes, bool]:
    """Return a head as a strict parser takes it, and whether more than its line ends were odd."""
    first, *lines = head.replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
    fields: list[tuple[bytes, list[bytes]]] = []
    for line in lines:
        if fields and line[:1] in {b" ", b"\t"}:
            fields[-1][1].append(line)
        else:
            name, colon, value = line.partition(b":")
            fields.append((name if colon else b" " + name, [value.strip(b" \t")]))
    sent = [(name, b"\n".join(values)) for name, values in fields]
    usable = usable_fields(sent)
    status_line = b" ".join(_FOLD_OR_CONTROL.sub(b" ", first).split(None, 2))  # RFC 9112 §4
    strict = b"\r\n".join([status_line, *(name + b": " + value for name, value in usable), b"", b""])
    return strict, usable != sent or status_line != first.rstrip(b" ")
