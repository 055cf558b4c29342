"""What is stored is what the host meant to send, as far as it says what that is."""

import base64
import hashlib
from typing import Any

import pytest

from fetchfleet import Outcome, Reason, Result
from fetchfleet.worker.errors import BadAnswerError
from tests.component.conftest import Start
from tests.support.answers import answer_of
from tests.support.ranged import Ranged, body_of, range_of
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Exchange, Header, Origin

BODY = body_of(1_500_000)
SMALL = b"until the end"


def told(field: str, algorithm: str, body: bytes) -> Header:
    """A digest of the body, as that field."""
    digest = hashlib.new(algorithm.replace("-", ""), body).digest()
    return field, f"{algorithm}=:{base64.b64encode(digest).decode()}:"


async def until_the_end_with_digest(x: Exchange) -> None:
    """The same, with a digest."""
    await x.send_head(200, [told("Repr-Digest", "sha-256", SMALL)])
    await x.send(SMALL)
    x.close()


@pytest.mark.parametrize("body", [BODY, SMALL], ids=["large", "small"])
@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
@pytest.mark.parametrize("field", ["Repr-Digest", "Content-Digest"])
async def test_a_digest_that_fits_changes_nothing(
    origin: Origin, worker: OneWorker, field: str, algorithm: str, body: bytes
) -> None:
    """A body that is what its host says is stored."""
    origin.behaviour = o.ok(body, [told(field, algorithm, body)])

    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts, worker.body(result)) == (Outcome.STORED, 1, body)


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
@pytest.mark.parametrize("field", ["Repr-Digest", "Content-Digest"])
async def test_a_body_that_is_not_what_its_host_says_is_not_stored(
    origin: Origin, start: Start, field: str, algorithm: str
) -> None:
    """Each attempt begins at 0: nobody knows which of its bytes are wrong."""
    worker = await start(policy={"attempts": 2})
    origin.behaviour = o.ok(BODY, [told(field, algorithm, SMALL), ("ETag", '"one"')])

    result = await worker.one(origin.url())

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.DIGEST_MISMATCH)
    assert (result.attempts, {range_of(seen) for seen in origin.requests}) == (2, {None})
    assert not worker.files() | worker.parts()


async def test_a_body_that_is_right_the_next_time_is_stored(origin: Origin, worker: OneWorker) -> None:
    """What was damaged on its way is had again."""
    said = told("Repr-Digest", "sha-256", BODY)
    damaged = o.ok(BODY[:-1] + b"x", [said])
    origin.behaviour = o.sequence(damaged, o.ok(BODY, [said]))

    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts, worker.body(result)) == (Outcome.STORED, 2, BODY)


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
async def test_after_a_resume_the_whole_is_checked(origin: Origin, worker: OneWorker, algorithm: str) -> None:
    """Repr-Digest is of the whole; Content-Digest, of the rest alone, is no part of it."""
    headers = [("ETag", '"one"'), told("Repr-Digest", algorithm, BODY)]
    rest = Ranged(BODY, [*headers, told("Content-Digest", "sha-256", b"the rest")])
    origin.behaviour = o.sequence(Ranged(BODY, headers, [1_000_000]), rest)

    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts, worker.body(result)) == (Outcome.STORED, 2, BODY)
    assert rest.sent_bytes == [500_000]


async def test_halves_of_two_bodies_are_not_one(origin: Origin, worker: OneWorker) -> None:
    """A host that calls both by one ETag is found out by the digest, and asked from 0."""
    other = BODY[::-1]
    headers = [("ETag", '"one"'), told("Repr-Digest", "sha-256", other)]
    origin.behaviour = o.sequence(Ranged(BODY, breaks=[1_000_000]), Ranged(other, headers))

    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts, worker.body(result)) == (Outcome.STORED, 3, other)
    assert [range_of(seen) for seen in origin.requests] == [None, "bytes=1000000-", None]


@pytest.mark.parametrize(
    ("behaviour", "fields", "unverified"),
    [
        (o.unframed, {}, True),
        (o.unframed, {"sha256": hashlib.sha256(SMALL).hexdigest()}, False),
        (until_the_end_with_digest, {}, False),
        (o.ok(SMALL), {}, False),
        (o.chunked([SMALL]), {}, False),
        (o.status(204), {}, False),
        (o.ok(), {"method": "HEAD"}, False),
    ],
    ids=["end", "caller", "digest", "length", "chunked", "204", "HEAD"],
)
async def test_a_body_of_which_nothing_shows_the_end_is_called_unverified(
    origin: Origin,
    worker: OneWorker,
    behaviour: Any,
    fields: dict[str, Any],
    unverified: bool,  # noqa: FBT001
) -> None:
    """It is stored all the same: that is how its host sends it."""
    origin.behaviour = behaviour

    result = await worker.one(origin.url(), **fields)

    assert (result.outcome, result.unverified) == (Outcome.STORED, unverified)
    assert _has_size_and_digest(result)


def _has_size_and_digest(result: Result) -> bool:
    """As every result with a path has."""
    return result.path is None or (result.bytes is not None and result.sha256 is not None)


@pytest.mark.parametrize(
    ("said", "length"),
    [
        (["10"], 10),
        (["10", "10"], 10),
        (["10, 10"], 10),
        (["10", "11"], None),
        (["10,"], None),
        (["1_0"], None),
        (["+10"], None),
        (["\u0661"], None),
        (["9" * 5000], None),
    ],
)
def test_a_length_that_is_said_twice_is_one(said: list[str], length: int | None) -> None:
    """Over HTTP/2 nobody below has looked at it; any other is a broken answer, and no bug of ours."""
    answer = answer_of(*((b"content-length", value.encode()) for value in said))

    if length is not None:
        assert answer.length_bytes == length
    else:
        with pytest.raises(BadAnswerError):
            _ = answer.length_bytes
