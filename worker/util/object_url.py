"""URLs of object stores: a scheme, a bucket and a prefix of keys. Pure."""

import re
from typing import NamedTuple

SCHEMES = ("s3", "gs", "az")
"""Amazon S3 and stores with its API, Google Cloud Storage, Azure Blob Storage."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}[A-Za-z0-9]")
_MAX_PREFIX_BYTES = 512
_EXAMPLE = "write it like s3://bucket/prefix"


class ObjectUrl(NamedTuple):
    """The place of objects in a store. It has no credentials."""

    scheme: str
    """One of SCHEMES."""
    bucket: str
    """The bucket; the container of an Azure account."""
    prefix: str
    """The start of every key, without slashes at its ends; empty for the whole bucket."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def parse(text: str) -> ObjectUrl:
    """Return the parts of a URL. The prefix is literal: it is not percent-decoded.

    Raises ValueError. Its message repeats no part of the URL that may be a secret.
    """
    scheme, _, rest = text.partition("://")
    if scheme not in SCHEMES:
        shown = scheme if scheme.isalnum() else "the scheme"
        raise ValueError(f"{shown} is not a store; choose {', '.join(f'{name}://' for name in SCHEMES)}")
    if "?" in rest or "#" in rest:
        raise ValueError(f"has a query or a fragment; {_EXAMPLE}, and set options by environment variables")
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise ValueError("has credentials or a port; set credentials and endpoint by environment variables")
    if _BUCKET.fullmatch(bucket) is None:
        raise ValueError(f"{bucket!a} is not the name of a bucket; {_EXAMPLE}")
    prefix = prefix.removesuffix("/")
    if len(prefix.encode(errors="replace")) > _MAX_PREFIX_BYTES:
        raise ValueError(f"the prefix has more than {_MAX_PREFIX_BYTES} bytes; shorten it")
    if prefix and (not prefix.isprintable() or not {"", ".", ".."}.isdisjoint(prefix.split("/"))):
        raise ValueError(f"the prefix has an empty part, a dot part or a control character; {_EXAMPLE}")
    return ObjectUrl(scheme, bucket, prefix)
