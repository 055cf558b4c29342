"""Repr-Digest and Content-Digest (RFC 9530), as far as they bind a body."""

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.body.digests import Digest, digests_of

BODY = b'{"hello": "world"}\n'
SHA256: Digest = ("sha256", hashlib.sha256(BODY).digest())
SHA512: Digest = ("sha512", hashlib.sha512(BODY).digest())
IN_256 = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"


def text(digest: Digest) -> str:
    """Return the digest as a member of a Dictionary."""
    name = {"sha256": "sha-256", "sha512": "sha-512"}[digest[0]]
    return f"{name}=:{base64.b64encode(digest[1]).decode()}:"


def read(
    representation: str | None = None,
    content: str | None = None,
    *,
    complete: bool = True,
    resumed: bool = False,
) -> set[Digest]:
    """Return the digests that bind the body."""
    fields = {"repr-digest": representation, "content-digest": content}
    return set(digests_of(fields.get, complete=complete, resumed=resumed))


def test_an_example_of_the_rfc_is_read() -> None:
    """RFC 9530 §B.1: the digest of `{"hello": "world"}` and a line feed."""
    assert read(IN_256) == read(None, IN_256) == {SHA256}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (text(SHA512), {SHA512}),
        (f"{text(SHA256)}, {text(SHA512)}", {SHA256, SHA512}),
        (f"md5=:YQ==:, {text(SHA256)};x=1, unixsum=:AAA=:", {SHA256}),
        ("md5=:YQ==:", set()),
        ("sha-256=:YQ==:", set()),
        ("sha-256=YQ", set()),
        ('sha-256="abc"', set()),
        ("sha-256", set()),
        (f"sha-256=({text(SHA256)[8:]})", set()),
        (f"{text(SHA256)}, =", set()),
        ("sha-256=:é:", set()),
        ("sha-256=:\u2028:", set()),
        ("", set()),
    ],
)
def test_only_sound_and_well_formed_digests_bind(value: str, found: set[Digest]) -> None:
    """Algorithms other than SHA-256 and SHA-512 are ignored, and so is a malformed field."""
    assert read(value) == found


def test_the_extent_of_a_digest_decides_if_it_binds() -> None:
    """The digest of the whole binds a resumed rest, and that of the content binds a requested part."""
    assert read(text(SHA256), text(SHA512)) == {SHA256, SHA512}
    assert read(text(SHA256), text(SHA512), complete=False, resumed=True) == {SHA256}
    assert read(text(SHA256), text(SHA512), complete=False) == {SHA512}


@given(st.text())
def test_arbitrary_fields_are_read(value: str) -> None:
    """No error is raised."""
    assert isinstance(read(value, value), set)
