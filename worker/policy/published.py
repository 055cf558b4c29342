"""The policy file as workers publish it in Redis, for commands on other machines. Pure.

It has the tables of the file without private values, and without the built-in defaults.
"""

import hashlib
from typing import Any

import msgspec

from fetchfleet.jobs.contract.urls import lane_of_name
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import LanePolicy, PolicyError
from fetchfleet.worker.policy.pauses import Table

NO_FILE = "defaults"
"""Stands for the digest if a worker has no policy file."""

DIGEST_CHARS = 16

PRIVATE = ("ca_file", "client_cert", "client_key")
"""Keys whose values are not published: paths of keys and certificates on the worker."""

HIDDEN = "***"

MAX_BYTES = 4 << 20
"""A larger policy is published without its tables of hosts."""


class PublishedPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """The tables of a policy file."""

    default: dict[str, Any] = {}
    """The keys of `[default]`."""
    host: dict[str, dict[str, Any]] = {}
    """The keys of each table of a host or pattern, by its canonical name."""
    hosts_left_out: int = 0
    """The number of tables of hosts that are missing, because the policy exceeds MAX_BYTES."""


_decode = msgspec.json.Decoder(PublishedPolicy).decode


def digest_of(policy: Policy) -> str:
    """Return the digest of a policy: the first digits of the SHA-256 of its file, or NO_FILE."""
    if policy.digest:
        return policy.digest
    if not policy.tables and not policy.default_table:
        return NO_FILE
    return digest_of_bytes(published(policy))


def digest_of_bytes(file: bytes) -> str:
    """Return the first DIGEST_CHARS digits of the SHA-256, comparable with `sha256sum`."""
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

    Keys unknown to this version are ignored, because the worker may be newer. Raises PolicyError for invalid
    values, and for a policy that was published without its tables of hosts.
    """
    try:
        decoded = _decode(text)
        if count := decoded.hosts_left_out:
            raise PolicyError(f"the policy is too large, so it was published without its {count} hosts")
        default = _known(decoded.default)
        tables = {lane_of_name(name): _known(table) for name, table in decoded.host.items()}
        return Policy(msgspec.convert(default, LanePolicy), tables, default_table=default)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise PolicyError(str(error)) from None


def _without_private(table: Table) -> dict[str, Any]:
    return {key: HIDDEN if key in PRIVATE and value else value for key, value in table.items()}


def _known(table: Table) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key in LanePolicy.__struct_fields__}
