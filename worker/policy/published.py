"""The form in which workers publish their policy file, for commands that run elsewhere. Pure.

Published are the tables as the file has them, without private values. Built-in defaults are not part of it.
"""

import hashlib
from typing import Any

import msgspec

from fetchfleet.jobs.contract.urls import lane_of_name
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import LanePolicy, PolicyError
from fetchfleet.worker.policy.pauses import Table

NO_FILE = "defaults"
"""In place of the digest of a worker without a policy file."""

DIGEST_CHARS = 16

PRIVATE = ("ca_file", "client_cert", "client_key")
"""Keys whose values stay on the worker: they name its files of keys and certificates."""

HIDDEN = "***"

MAX_BYTES = 4 << 20
"""A larger policy is published without the tables of its hosts."""


class PublishedPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """The tables of a policy file."""

    default: dict[str, Any] = {}
    host: dict[str, dict[str, Any]] = {}
    hosts_left_out: int = 0
    """How many tables of hosts are missing, because the policy is too large."""


_decode = msgspec.json.Decoder(PublishedPolicy).decode


def digest_of(policy: Policy) -> str:
    """Return the digest of a policy: the start of its file's SHA-256, or NO_FILE."""
    if policy.digest:
        return policy.digest
    if not policy.tables and not policy.default_table:
        return NO_FILE
    return digest_of_bytes(published(policy))


def digest_of_bytes(file: bytes) -> str:
    """Return the digest of a file, as `sha256sum` begins it."""
    return hashlib.sha256(file).hexdigest()[:DIGEST_CHARS]


def published(policy: Policy, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the tables of a policy as JSON, without private values."""
    default = _without_private(policy.default_table)
    hosts = {name: _without_private(table) for name, table in policy.tables.items()}
    text = msgspec.json.encode(PublishedPolicy(default=default, host=hosts))
    if len(text) <= max_bytes:
        return text
    return msgspec.json.encode(PublishedPolicy(default=default, hosts_left_out=len(hosts)))


def read_published(text: bytes) -> Policy:
    """Return the policy that a worker has published.

    Keys that this version does not know are left out: the worker may be newer. Raises PolicyError for values
    that this version refuses, and for a policy without its hosts.
    """
    try:
        found = _decode(text)
        if found.hosts_left_out:
            raise PolicyError(f"it is too large to be published: {found.hosts_left_out} hosts are left out")
        default = _known(found.default)
        tables = {lane_of_name(name): _known(table) for name, table in found.host.items()}
        return Policy(msgspec.convert(default, LanePolicy), tables, default_table=default)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise PolicyError(str(error)) from None


def _without_private(table: Table) -> dict[str, Any]:
    return {key: HIDDEN if key in PRIVATE and value else value for key, value in table.items()}


def _known(table: Table) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key in LanePolicy.__struct_fields__}
