"""Webhooks: the request that notifies a service of the end of a batch, and its signature. Pure.

They follow Standard Webhooks 1.0.0 (https://www.standardwebhooks.com).
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime

from fetchfleet.jobs.contract.fetch import Fetch, encode
from fetchfleet.jobs.contract.ids import batch_id_for, inbox_prefix
from fetchfleet.jobs.contract.urls import UrlError, canonical_url
from fetchfleet.jobs.errors import InvalidFetchError

BATCH_ENDED = "batch.ended"
"""The type of the event."""

MAX_NOTIFY_BYTES = 2048
"""Largest URL of a webhook: the batch keeps it in Redis."""

_ORIGIN = "/webhooks"
"""Stands for the inbox in the batch IDs of webhooks. No inbox can have this name."""

WEBHOOK_PREFIX = inbox_prefix(_ORIGIN)
"""The prefix of the batch IDs of webhooks, each of which is a batch of one fetch."""

SECRET_PREFIX = "whsec_"  # noqa: S105 the prefix of every secret
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64


def notify_url(url: str | None) -> str:
    """Return the URL of a webhook in canonical form, "" for None; raise InvalidFetchError."""
    if url is None:
        return ""
    try:
        if not isinstance(url, str):
            raise UrlError(f"must be a URL, got {type(url).__name__}")  # noqa: TRY301 reported as the others
        canonical = canonical_url(url)
    except UrlError as error:
        raise InvalidFetchError(f"notify: {error}") from None
    if len(canonical) > MAX_NOTIFY_BYTES:
        raise InvalidFetchError(f"notify: has {len(canonical)} bytes; the limit is {MAX_NOTIFY_BYTES}")
    return canonical


def webhook_batch_id(batch_id: str) -> str:
    """Return the ID of the batch that holds the webhook of a batch."""
    return batch_id_for(batch_id, _ORIGIN)


def is_webhook(batch_id: str) -> bool:
    """Return whether the batch holds a webhook."""
    return batch_id.startswith(WEBHOOK_PREFIX)


def batch_ended(url: str, batch_id: str, counts: Mapping[str, int], ended_ms: int) -> Fetch:
    """Return the webhook of a batch that has ended. ended_ms: Unix ms."""
    at = datetime.fromtimestamp(ended_ms / 1000, UTC).isoformat(timespec="milliseconds")
    event = {
        "type": BATCH_ENDED,
        "timestamp": at.replace("+00:00", "Z"),
        "data": {"batch": batch_id, **counts},
    }
    return Fetch(
        url=url,
        method="POST",
        headers={"Content-Type": "application/json"},
        body=encode(event).decode(),
        sign=True,
        retry_unsafe=True,  # receivers recognise a repeat by its webhook-id
        meta={"notify": batch_id},
    )


class SigningKeys:
    """The secrets with which a worker signs webhooks. No text of this object shows them."""

    def __init__(self, secrets: tuple[bytes, ...] = ()) -> None:
        self._secrets = secrets

    @classmethod
    def parse(cls, text: str) -> "SigningKeys":
        """Return the secrets of a list, separated by commas. Raises ValueError, which shows no secret."""
        words = [word.strip() for word in text.split(",")] if text.strip() else []
        return cls(tuple(_secret(word, place) for place, word in enumerate(words, start=1)))

    def __bool__(self) -> bool:
        return bool(self._secrets)

    def __repr__(self) -> str:
        return f"<SigningKeys {len(self._secrets)}>"

    def headers(self, message_id: str, timestamp_s: int, body: str) -> tuple[tuple[str, str], ...]:
        """Return the headers of a request, with a signature by each secret. timestamp_s: Unix seconds."""
        content = f"{message_id}.{timestamp_s}.{body}".encode()
        digests = [hmac.digest(secret, content, hashlib.sha256) for secret in self._secrets]
        return (
            ("webhook-id", message_id),
            ("webhook-timestamp", str(timestamp_s)),
            ("webhook-signature", " ".join(f"v1,{base64.b64encode(one).decode()}" for one in digests)),
        )


UNSIGNED = SigningKeys()
"""The keys of a worker that signs nothing."""


def _secret(text: str, place: int) -> bytes:
    secret = b""
    if text.startswith(SECRET_PREFIX) and text.isascii():
        coded = text.removeprefix(SECRET_PREFIX).rstrip("=")
        try:
            secret = base64.b64decode(coded + "=" * (-len(coded) % 4), validate=True)
        except binascii.Error:
            secret = b""
    if not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
        raise ValueError(
            f"secret {place} must be {SECRET_PREFIX} and {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes in"
            f" base64; make one with: echo {SECRET_PREFIX}$(openssl rand -base64 32)"
        )
    return secret
