"""Durability on an object store: the objects after a kill at any request.

The tests of files that have no counterpart here are those of syncs, of temporary and unnamed files, of links
and of folders that are moved or mounted. A store has none of them.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disks import ID
from tests.support.killed_upload import DEST, KilledUpload, driver, some_body
from tests.support.object_store import Bucket, ObjectServer

SMALL, SPOOLED, LOOKED_UP, PARTS = 10, 500_000, 1 << 20, 10_500_001
"""LOOKED_UP: from this size a body is sent after a look at its key."""

REQUESTS = {SMALL: 1, SPOOLED: 1, PARTS: 5}
"""The requests that store a body: one, or the start, two parts, the rest and the completion."""


@pytest.fixture(scope="module")
def killed(object_server: ObjectServer) -> Iterator[KilledUpload]:
    """Yield the driver of sinks that are killed."""
    with driver(object_server) as running:
        yield running


def found(bucket: Bucket, body: bytes, old: bytes | None) -> str:
    """Return what is at DEST: `nothing`, `old`, `whole` or `half`."""
    objects = bucket.objects()
    if DEST not in objects:
        return "nothing"
    return {old: "old", body: "whole"}.get(objects[DEST].body, "half")


@pytest.mark.parametrize(
    ("size_bytes", "old"),
    [(SMALL, None), (SMALL, b"old"), (SPOOLED, None), (PARTS, b"old")],
    ids=["new", "replace", "spooled", "parts"],
)
def test_a_kill_at_any_request_leaves_a_whole_object_or_none(
    killed: KilledUpload, bucket: Bucket, tmp_path: Path, size_bytes: int, old: bytes | None
) -> None:
    """Killed before or after a request, it leaves a whole body or the old one. The next attempt ends."""
    body, before = some_body(size_bytes), "nothing" if old is None else "old"
    for at in range(REQUESTS[size_bytes]):
        for after in (False, True):
            if old is not None:
                bucket.put(DEST, old)
            else:
                bucket.delete(DEST)
            assert killed(bucket, tmp_path, size_bytes, "replace", at, after=after)
            complete = after and at == REQUESTS[size_bytes] - 1
            assert found(bucket, body, old) == ("whole" if complete else before), (at, after)

    assert not killed(bucket, tmp_path, size_bytes, "replace", REQUESTS[size_bytes], after=False)
    bucket.server.release()
    assert found(bucket, body, old) == "whole"


@pytest.mark.parametrize("size_bytes", [SMALL, LOOKED_UP], ids=["small", "looked up"])
@pytest.mark.parametrize("old", [None, b"old"], ids=["free", "taken"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_attempt_repeated_after_a_kill_leaves_one_object(
    killed: KilledUpload, bucket: Bucket, tmp_path: Path, size_bytes: int, old: bytes | None, *, after: bool
) -> None:
    """With `suffix`, the repeated attempt finds its own object. One of another body keeps its key."""
    if old is not None:
        bucket.put(DEST, old)
    refused = 1 if old is not None and size_bytes == SMALL else 0
    assert killed(bucket, tmp_path, size_bytes, "suffix", refused, after=after)
    assert not killed(bucket, tmp_path, size_bytes, "suffix", None, after=False)

    suffixed = DEST if old is None else f"{DEST}-{ID}"
    expected = {suffixed: some_body(size_bytes)} | ({} if old is None else {DEST: old})
    assert {path: stored.body for path, stored in bucket.objects().items()} == expected
