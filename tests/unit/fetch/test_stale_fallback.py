"""The stale fallback: its occasions, and the stored bodies that it accepts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet import Fetch, InvalidFetchError, Outcome, Reason
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.fetch import decode_fetch
from fetchfleet.jobs.contract.result import decode_result
from fetchfleet.worker.fetch.rules import stale_fallback
from fetchfleet.worker.fetch.rules.decide import Finish
from fetchfleet.worker.fetch.rules.outcome import Answered, AttemptOutcome, Failed, Interrupted
from fetchfleet.worker.gate.gate import WaitReason
from fetchfleet.worker.policy.file import parse_policy
from fetchfleet.worker.policy.model import LanePolicy, PolicyError
from fetchfleet.worker.sink import index_entry
from fetchfleet.worker.sink.index_entry import IndexEntry

HELD = Interrupted()
RECORD = IndexEntry(path="a/b", bytes=3, sha256="0" * 64, stored_ms=9)


def entry(last: Reason | None = None) -> Entry:
    """Return a fetch that waits again for this reason."""
    return Entry(id="0123456789abcdef-00000000", deadline_ms=0, fetch=Fetch(url="http://a/x"), last=last)


def broke(reason: Reason) -> Failed:
    """Return an attempt that ended this way."""
    return Failed(reason=reason)


DOWN: list[tuple[Reason, AttemptOutcome, WaitReason | None, Reason | None]] = [
    (Reason.HOST_DEAD, broke(Reason.READ), WaitReason.BREAKER, None),
    (Reason.CONNECT, broke(Reason.CONNECT), None, None),
    (Reason.CONNECT_TIMEOUT, broke(Reason.CONNECT_TIMEOUT), None, None),
    (Reason.DNS, broke(Reason.DNS), None, None),
    (Reason.DNS_NXDOMAIN, broke(Reason.DNS_NXDOMAIN), None, None),
    (Reason.HTTP_STATUS, Answered(status=503), None, None),
    (Reason.THROTTLED, Answered(status=429, wait_s=9), WaitReason.COOL_DOWN, None),
    (Reason.THROTTLED, HELD, WaitReason.COOL_DOWN, None),
    (Reason.DEADLINE, HELD, WaitReason.BREAKER, None),
    (Reason.DEADLINE, HELD, WaitReason.COOL_DOWN, None),
    (Reason.DEADLINE, HELD, WaitReason.ROBOTS, None),
    (Reason.DEADLINE, Answered(status=500), None, None),
    (Reason.DEADLINE, HELD, None, Reason.CONNECT),
]

WELL: list[tuple[Reason, AttemptOutcome, WaitReason | None, Reason | None]] = [
    (Reason.DEADLINE, HELD, None, None),
    (Reason.DEADLINE, HELD, WaitReason.RATE_LIMIT, None),
    (Reason.DEADLINE, HELD, WaitReason.PAUSED, None),
    (Reason.HTTP_STATUS, Answered(status=404), WaitReason.BREAKER, None),
    (Reason.HTTP_STATUS, Answered(status=408), None, None),
    (Reason.HTTP_STATUS, Answered(status=501), None, None),
    *(
        (reason, broke(reason), WaitReason.BREAKER, Reason.CONNECT)
        for reason in (
            *(Reason.BAD_DEST, Reason.DIGEST_MISMATCH, Reason.DISK, Reason.EGRESS_REFUSED, Reason.INTERNAL),
            *(Reason.INTERRUPTED, Reason.INVALID, Reason.POISON, Reason.REDIRECT_REFUSED),
            *(Reason.ROBOTS_DISALLOWED, Reason.TLS, Reason.TOO_LARGE, Reason.TOO_MANY_REDIRECTS),
            *(Reason.STATUS_REFUSED, Reason.TOO_SMALL, Reason.TYPE_REFUSED, Reason.X_ROBOTS_REFUSED),
        )
    ),
]


@pytest.mark.parametrize(("reason", "happened", "shut", "last"), DOWN)
def test_a_host_that_is_down_is_an_occasion(
    reason: Reason, happened: AttemptOutcome, shut: WaitReason | None, last: Reason | None
) -> None:
    """The host has no address, does not respond, sends an error last, or cools down past the deadline."""
    finish = Finish(outcome=Outcome.FAILED, reason=reason)

    assert stale_fallback.is_host_down(entry(last), finish, happened, shut)


@pytest.mark.parametrize(("reason", "happened", "shut", "last"), WELL)
def test_other_outcomes_use_no_fallback(
    reason: Reason, happened: AttemptOutcome, shut: WaitReason | None, last: Reason | None
) -> None:
    """A rejected request, a refusal by the worker and a busy lane do not mean that the host is down."""
    finish = Finish(outcome=Outcome.FAILED, reason=reason)

    assert not stale_fallback.is_host_down(entry(last), finish, happened, shut)


@pytest.mark.parametrize("outcome", [Outcome.STORED, Outcome.UNCHANGED, Outcome.CANCELLED])
def test_only_a_failure_becomes_stale(outcome: Outcome) -> None:
    """Successful and cancelled fetches stay as they are."""
    assert not stale_fallback.is_host_down(entry(), Finish(outcome=outcome), HELD, WaitReason.BREAKER)


@pytest.mark.parametrize(
    ("by_fetch", "by_policy", "force"),
    [
        (None, "none", False),
        (None, "stale", True),
        ("stale", "none", True),
        ("none", "stale", False),
    ],
)
def test_the_fetch_overrides_the_policy(by_fetch: str | None, by_policy: str, *, force: bool) -> None:
    """Without a value in the fetch, the policy applies."""
    fetch = Fetch(url="http://a/x", fallback=by_fetch)

    assert force is stale_fallback.is_allowed(fetch, LanePolicy(fallback=by_policy))


def test_only_a_get_falls_back() -> None:
    """The body of another method is not the content of its URL."""
    fetch = Fetch(url="http://a/x", method="POST", fallback="stale")

    assert not stale_fallback.is_allowed(fetch, LanePolicy())


def test_a_body_is_indexed_by_the_headers_that_select_it() -> None:
    """Another Range or Authorization, or decoding, selects another body. A condition does not."""
    url = "http://a/x"
    plain = index_entry.key_of(Fetch(url=url))

    assert 64 == len(plain)
    assert plain == index_entry.key_of(Fetch(url="HTTP://A:80/x#y", headers={"If-None-Match": '"e"'}))
    assert plain != index_entry.key_of(Fetch(url="http://a/y"))
    assert plain != index_entry.key_of(Fetch(url=url, decode=True))
    others = [{"Range": "bytes=0-1"}, {"Authorization": "one"}, {"Authorization": "two"}]
    assert 4 == len({plain, *(index_entry.key_of(Fetch(url=url, headers=headers)) for headers in others)})


@pytest.mark.parametrize(
    ("fields", "sha256", "fits"),
    [
        ({}, None, True),
        ({"max_bytes": 3}, None, True),
        ({"max_bytes": 2}, None, False),
        ({"sha256": "0" * 64}, "0" * 64, True),
        ({"sha256": "0" * 64}, "1" * 64, False),
        ({"sha256": "0" * 64}, None, False),
    ],
)
def test_a_stale_body_must_pass_the_checks_of_the_fetch(
    fields: dict[str, object], sha256: str | None, *, fits: bool
) -> None:
    """A body that the fetch would refuse is not a substitute."""
    fetch = Fetch(url="http://a/x", **fields)  # type: ignore[arg-type]

    assert fits is index_entry.fits(fetch, 3, sha256)


def test_a_record_is_read_back_unchanged() -> None:
    """Path, size, digest and time."""
    assert RECORD == index_entry.from_json(index_entry.to_json(RECORD))


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "a/../../x", "", "a//b", ".fetchfleet/parts/x", "a\0b"]
)
def test_a_record_outside_of_the_out_folder_is_ignored(path: str) -> None:
    """Its path must be one that a fetch can have."""
    assert index_entry.from_json(b'{"path":"%b","bytes":1,"sha256":"","stored_ms":1}' % path.encode()) is None


@given(st.binary(max_size=100))
def test_junk_is_not_a_record(text: bytes) -> None:
    """It holds for arbitrary content."""
    assert index_entry.from_json(text) is None


def test_a_fallback_is_one_of_two() -> None:
    """A fetch and a policy accept only `none` and `stale`."""
    assert "stale" == decode_fetch(b'{"url":"http://a/","fallback":"stale"}').fallback
    with pytest.raises(InvalidFetchError, match="fallback: 'old' is not one of none, stale"):
        Fetch(url="http://a/", fallback="old")
    with pytest.raises(PolicyError, match="fallback: 'old' is not one of none, stale"):
        parse_policy('[default]\nfallback = "old"')


def test_a_result_of_an_older_version_is_not_stale() -> None:
    """Unknown fields of newer versions are ignored."""
    result = decode_result(b'{"id":"i","url":"u","outcome":"unchanged","worker":"w","later":1}')

    assert not result.stale
