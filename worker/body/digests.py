"""What a host says its body's digest is: Repr-Digest and Content-Digest (RFC 9530). Pure."""

from collections.abc import Callable

import http_sf

ALGORITHMS = {"sha-256": ("sha256", 32), "sha-512": ("sha512", 64)}
"""Those that RFC 9530 §7.2 calls active: hashlib's name, and how many bytes a digest has."""

Digest = tuple[str, bytes]
Header = Callable[[str], str | None]


def digests_of(header: Header, *, whole: bool, resumed: bool = False) -> tuple[Digest, ...]:
    """What the body must come to, each once.

    whole: the answer's content is all of what was asked for by GET, else Repr-Digest is not of what comes.
    resumed: it is the rest of that, to be put together here, and Content-Digest is of the rest alone.
    """
    found: list[Digest] = []
    if whole or resumed:
        found += _members(header("repr-digest"))
    if not resumed:
        found += _members(header("content-digest"))
    return tuple(dict.fromkeys(found))


def _members(value: str | None) -> list[Digest]:
    """The digests that we know of a Dictionary; nothing of a field that is malformed."""
    if value is None:
        return []
    try:
        members = http_sf.parse(value.encode("latin-1"), tltype="dictionary")
    except (ValueError, UnicodeEncodeError):
        return []
    if not isinstance(members, dict):
        return []
    found: list[Digest] = []
    for name, (algorithm, size_bytes) in ALGORITHMS.items():
        item = members.get(name)
        digest = item[0] if isinstance(item, tuple) else None
        if isinstance(digest, bytes) and len(digest) == size_bytes:
            found.append((algorithm, digest))
    return found
