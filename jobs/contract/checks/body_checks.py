"""Checks of the request body of a fetch: text, base64, or a file in the workers' in folder. Pure."""

import base64
import binascii

from fetchfleet.jobs.contract.checks import field_checks
from fetchfleet.jobs.errors import InvalidFetchError


def check(method: str, body: str | None, body_base64: str | None, body_file: str | None) -> None:
    """Require at most one body field, valid, and only with a method that has a body."""
    if body is None and body_base64 is None and body_file is None:
        return
    values = {"body": body, "body_base64": body_base64, "body_file": body_file}
    fields = [name for name, value in values.items() if value is not None]
    if len(fields) > 1:
        raise InvalidFetchError(f"{fields[1]}: {fields[0]} is set too; set only one of them")
    for field in fields:
        if method in field_checks.BODYLESS_METHODS:
            raise InvalidFetchError(f"{field}: a {method} request has no body; leave it out or use POST")
    if body is not None:
        field_checks.body(body)
    if body_base64 is not None:
        try:
            size_bytes = len(base64.b64decode(body_base64, validate=True))
        except (binascii.Error, ValueError):
            raise InvalidFetchError("body_base64: is not padded base64 (RFC 4648 §4)") from None
        if size_bytes > field_checks.MAX_BODY_BYTES:
            raise InvalidFetchError(
                f"body_base64: has {size_bytes} bytes; the limit is {field_checks.MAX_BODY_BYTES};"
                " use body_file"
            )
    if body_file is not None:
        field_checks.relative_path("body_file", body_file, "in")


def inline(body: str | None, body_base64: str | None) -> bytes | None:
    """Return the body that the fetch itself contains; None without one."""
    if body is not None:
        return body.encode()
    return base64.b64decode(body_base64) if body_base64 is not None else None
