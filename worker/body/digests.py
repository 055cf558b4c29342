"""Parses the digests that a host sends with a body: Repr-Digest and Content-Digest (RFC 9530). Pure."""

from collections.abc import Callable

ALGORITHMS = {"sha-256": ("sha256", 32), "sha-512": ("sha512", 64)}
"""The active algorithms of RFC 9530 §7.2, with their names in hashlib and the size of a digest in bytes."""

Digest = tuple[str, bytes]
"""The name of the algorithm in hashlib, and the digest."""
Header = Callable[[str], str | None]


def digests_of(header: Header, *, complete: bool, resumed: bool = False) -> tuple[Digest, ...]:
    """Return the digests that the stored body must have, without duplicates.

    complete: the content is the complete representation of a GET; otherwise Repr-Digest does not apply to it.
    resumed: the content is the rest of a body. Repr-Digest then applies to the completed body, and
    Content-Digest only to the rest, so it is ignored.
    """
    digests: list[Digest] = []
    if complete or resumed:
        digests += _members(header("repr-digest"))
    if not resumed:
        digests += _members(header("content-digest"))
    return tuple(dict.fromkeys(digests))


def _members(value: str | None) -> list[Digest]:
    """Return the supported digests of a Dictionary field; none if the field is malformed."""
    if value is None:
        return []
    import http_sf  # noqa: PLC0415 loads many modules, and few hosts send the field

    try:
        members = http_sf.parse(value.encode("latin-1"), tltype="dictionary")
    except (ValueError, UnicodeEncodeError):
        return []
    if not isinstance(members, dict):
        return []
    digests: list[Digest] = []
    for name, (algorithm, size_bytes) in ALGORITHMS.items():
        item = members.get(name)
        digest = item[0] if isinstance(item, tuple) else None
        if isinstance(digest, bytes) and len(digest) == size_bytes:
            digests.append((algorithm, digest))
    return digests
