"""An object store, with the errors of its client in one place.

Credentials and endpoint come from the environment, as obstore reads them (AWS_ACCESS_KEY_ID, …).
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import obstore
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, S3Store

from fetchfleet.worker.errors import BAD_USE, FAILED, BadDestError, CommandError, ExistsError
from fetchfleet.worker.observability import redact
from fetchfleet.worker.util.object_url import ObjectUrl

TRIAL_KEY = ".fetchfleet/trial"
"""The key of the object that a worker writes at its start, below the prefix."""

MAX_KEY_BYTES = 1024
"""The longest key of Amazon S3, Google Cloud Storage and Azure Blob Storage, with the prefix."""

MAX_PUT_BYTES = 5 << 30
"""The largest body of one PUT request in Amazon S3 and Google Cloud Storage."""

STALL_S = 60.0
SLOWEST_BYTES_PER_S = 256 * 1024
"""A request may take STALL_S, and longer for its body at this rate. Then the store counts as down."""

_CLIENT = {"timeout": "24h", "connect_timeout": "5s"}
"""The timeout is longer than any that `_answered` sets."""

_RETRIES: Any = {
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=1),
        "base": 2,
    },
}
"""Few and quick: the fetch waits in its lane, not in a slot of the worker."""

_MISSING = (FileNotFoundError, exceptions.PermissionDeniedError)
"""The errors of reading a missing object. Amazon S3 denies it to a user who may not list the bucket."""

_STATUS = re.compile(r"status code: (\d{3}[A-Za-z ]*)")
_COLLISION = re.compile(r"\b(ConditionalRequestConflict|OperationAborted)\b")
"""The codes of S3 for a request that collides with another one. A repetition may pass."""

_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,120})")
_SYSTEM_ERROR = re.compile(r'kind: Connect,.*?\bmessage: "([^"]{1,80})"', re.DOTALL)
_REFUSED = re.compile(
    r"redirect without LOCATION|<Code>(AuthorizationHeaderMalformed|ExpiredToken|InvalidToken)</Code>"
)
"""Errors with another status than 403: the region is wrong, or a token is not valid."""

_WITHOUT_TLS = re.compile(r"Generic S3 error: .* http://\S+ in .* - HTTP error: builder error")
_MAX_CAUSE_CHARS = 200


class StoreError(OSError):
    """The store refuses a request or does not answer. It is never the fault of the host of a fetch."""

    may_pass = True
    """False if only another configuration helps: rights, credentials or bucket."""


class RefusedStoreError(StoreError):
    """The store rejects the credentials, denies the request, or has no such bucket."""

    may_pass = False


class ObjectFound(NamedTuple):
    """The size and the version of an object."""

    size_bytes: int
    etag: str | None
    sha256: str | None = None
    """The digest in the object's metadata, if it was read."""
    fetch: str | None = None
    """The ID of the fetch in the object's metadata, if it was read."""


class ObjectStore:
    """The objects below the prefix of a URL. Paths are relative to it. Coroutines raise StoreError.

    Raises CommandError if a setting of the store in the environment is missing or invalid.
    """

    def __init__(self, url: ObjectUrl) -> None:
        self.url = url
        try:
            with self._errors_mapped(""):
                self._store = _client(url)
        except (StoreError, BadDestError) as error:
            raise CommandError(f"--out {error}", BAD_USE) from None
        self._prefix_bytes = len(url.prefix.encode()) + 1 if url.prefix else 0

    def is_too_long(self, path: str) -> bool:
        """Return whether the key of a path is longer than stores allow."""
        return self._prefix_bytes + len(path.encode()) > MAX_KEY_BYTES

    def check(self) -> None:
        """Write a small object, to check bucket, credentials and rights. Blocks. Raises CommandError."""
        try:
            with self._errors_mapped(TRIAL_KEY):
                obstore.put(self._store, TRIAL_KEY, b"fetchfleet\n", use_multipart=False)
        except StoreError as error:
            raise CommandError(f"--out {error}", FAILED if error.may_pass else BAD_USE) from None

    async def put(
        self, path: str, body: Any, attributes: Mapping[str, str], *, create: bool = False
    ) -> str | None:
        """Store a body (a buffer) with one request. Returns the object's ETag.

        create: raise ExistsError if there is an object of that key, and leave it. Raises BadDestError.
        """
        mode: Any = "create" if create else "overwrite"
        with self._errors_mapped(path):
            async with _answered(len(body)):
                try:
                    result = await obstore.put_async(
                        self._store, path, body, attributes=dict(attributes), mode=mode, use_multipart=False
                    )
                except exceptions.AlreadyExistsError as error:
                    if create and not _COLLISION.search(str(error)):
                        raise ExistsError(path) from None
                    raise
        return result["e_tag"]

    async def put_parts(
        self, path: str, parts: AsyncIterator[bytes], part_bytes: int, attributes: Mapping[str, str]
    ) -> str | None:
        """Store a body in parts of that size, one after the other. Returns the object's ETag.

        If `parts` raises, the upload is aborted, and the error is raised. If the call is cancelled, nothing
        is stored, but the parts stay in the store until a rule of its life cycle removes them.
        """
        with self._errors_mapped(path):
            result = await obstore.put_async(
                self._store,
                path,
                parts,
                attributes=dict(attributes),
                use_multipart=True,
                chunk_size=part_bytes,
                max_concurrency=1,
            )
        return result["e_tag"]

    async def head(self, path: str) -> ObjectFound | None:
        """Return the size and ETag of an object; None if there is none."""
        with self._errors_mapped(path):
            try:
                async with _answered(0):
                    found = await obstore.head_async(self._store, path)
            except _MISSING:
                return None
        return ObjectFound(found["size"], found["e_tag"])

    async def read_attributes(self, path: str) -> ObjectFound | None:
        """Return the size, the ETag and the metadata of an object; None if there is none."""
        with self._errors_mapped(path):
            try:
                async with _answered(0):
                    found = await obstore.get_async(self._store, path, options={"head": True})
            except _MISSING:
                return None
        attributes: Any = found.attributes
        recorded = attributes.get("sha256"), attributes.get("fetch")
        return ObjectFound(found.meta["size"], found.meta["e_tag"], *recorded)

    async def get(self, path: str, max_bytes: int) -> bytes | None:
        """Return the content of an object; None if there is none, or if it has more bytes."""
        with self._errors_mapped(path):
            try:
                async with _answered(max_bytes):
                    found = await obstore.get_async(self._store, path)
                    if found.meta["size"] > max_bytes:
                        return None
                    return bytes(await found.bytes_async())
            except _MISSING:
                return None

    @contextmanager
    def _errors_mapped(self, path: str) -> Iterator[None]:
        """Map the errors of obstore about an object."""
        try:
            yield
        except (ValueError, exceptions.InvalidPathError) as error:
            raise BadDestError(f"{path!r} cannot be a key of {self.url}: {cause_of(error)}") from None
        except TimeoutError:
            raise StoreError(f"{self.url}: no response in time") from None
        except (
            FileNotFoundError,  # of the bucket: `head` and `get` handle that of an object
            exceptions.PermissionDeniedError,
            exceptions.UnauthenticatedError,
            exceptions.UnknownConfigurationKeyError,
        ) as error:
            raise RefusedStoreError(f"{self.url}: {cause_of(error)}") from None
        except exceptions.BaseError as error:
            refused = _WITHOUT_TLS.search(str(error)) or _REFUSED.search(str(error))
            kind = RefusedStoreError if refused else StoreError
            raise kind(f"{self.url}: {cause_of(error)}") from None


def allowed_s(size_bytes: int) -> float:
    """Return the time that a request with a body of this size may take."""
    return STALL_S + size_bytes / SLOWEST_BYTES_PER_S


def cause_of(error: Exception) -> str:
    """Return the cause of an error of obstore in one line, without the URL of the request."""
    text, _, debug = str(error).partition("\n\nDebug source")
    if _WITHOUT_TLS.search(text):
        return "the endpoint has no TLS; set AWS_ALLOW_HTTP=true to permit that"
    if status := _STATUS.search(text):
        found = (status, _CODE.search(text), _MESSAGE.search(text))
        return ": ".join(match[1].strip() for match in found if match is not None)
    cause = " ".join(text.rpartition(" - ")[2].split())
    if system := _SYSTEM_ERROR.search(debug):
        cause += f": {system[1]}"
    return redact.text(cause)[:_MAX_CAUSE_CHARS]


def _answered(size_bytes: int) -> asyncio.Timeout:
    return asyncio.timeout(allowed_s(size_bytes))


def _client(url: ObjectUrl) -> Any:
    """Return the client of a store. It opens no connection."""
    config: Any = _CLIENT
    prefix = url.prefix or None
    match url.scheme:
        case "s3":
            return S3Store(url.bucket, prefix=prefix, config=config, retry_config=_RETRIES)
        case "gs":
            return GCSStore(url.bucket, prefix=prefix, config=config, retry_config=_RETRIES)
        case _:
            return AzureStore(url.bucket, prefix=prefix, config=config, retry_config=_RETRIES)
