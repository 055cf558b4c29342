"""The decision whether a response has a body to store, by its status and its head."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet import Accept, Fetch, Reason
from fetchfleet.worker.fetch.rules.accept import (
    FORBIDDING_RULES,
    Requirements,
    forbidding_rule,
    has_body,
    matches,
    refusal_of,
    requirements_of,
)
from fetchfleet.worker.fetch.rules.outcome import (
    AlreadyExists,
    AttemptOutcome,
    Failed,
    Stored,
    host_signal_of,
)
from fetchfleet.worker.gate.gate import HostSignal
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.sink.index_entry import Validators

URL = "http://a.example/"
TOKEN = "fetchfleet"
TYPES = st.sampled_from(["image/png", "image/svg+xml", "text/html", "application/json"])
FINAL_REFUSALS = (Reason.STATUS_REFUSED, Reason.TOO_SMALL, Reason.TYPE_REFUSED, Reason.X_ROBOTS_REFUSED)


def requirements(
    *,
    types: tuple[str, ...] = (),
    statuses: tuple[int, ...] = (),
    retried: tuple[int, ...] = (),
    tag: str = "ignore",
) -> Requirements:
    """Return requirements of which only these are set."""
    return Requirements(Accept(types=types, statuses=statuses), retried, tag)


@pytest.mark.parametrize(
    ("statuses", "retried", "status", "wait_s", "expected"),
    [
        ((), (), 200, None, True),
        ((), (), 206, None, True),
        ((), (), 404, None, False),
        ((), (), 503, None, False),
        ((404, 503), (), 404, None, True),
        ((404, 503), (), 503, None, True),
        ((404, 503), (), 503, 1.0, False),
        ((403,), (), 403, 0.0, False),
        ((403,), (), 403, None, True),
        ((404,), (), 200, None, True),
        ((), (202,), 202, None, False),
        ((200,), (202,), 202, None, False),
        ((202,), (202,), 202, None, False),
        ((404,), (404,), 404, None, False),
        ((), (), 302, None, False),
        ((), (), 304, None, False),
    ],
)
def test_the_status_decides_whether_a_response_has_a_body(
    statuses: tuple[int, ...], retried: tuple[int, ...], status: int, wait_s: float | None, *, expected: bool
) -> None:
    """Throttles and retried statuses have none. Any other 2xx has one, to store or to refuse."""
    assert has_body(requirements(statuses=statuses, retried=retried), status, wait_s) is expected


@pytest.mark.parametrize(
    ("media_range", "content_type", "expected"),
    [
        ("image/*", "image/png", True),
        ("image/*", "IMAGE/PNG; a=b", True),
        ("image/*", " image/png ;q=1", True),
        ("image/*", "image/", False),
        ("image/*", "image", False),
        ("image/*", "imagex/png", False),
        ("image/*", "text/html", False),
        ("image/png", "image/png", True),
        ("image/png", "image/png+xml", False),
        ("*/*", "text/html", True),
        ("*/*", None, True),
        ("*/*", "garbage", True),
        ("image/*", None, False),
        ("image/*", "", False),
        ("image/*", "/png", False),
        ("image/png", "*/*", False),
    ],
)
def test_a_content_type_matches_a_media_range(
    media_range: str, content_type: str | None, *, expected: bool
) -> None:
    """Case and parameters do not matter. A missing or malformed type matches only `*/*`."""
    assert matches((media_range,), content_type) is expected


@given(TYPES, st.lists(TYPES, max_size=3), st.text(st.characters(max_codepoint=255), max_size=20))
def test_a_type_matches_itself_its_kind_and_every_type(kind: str, others: list[str], tail: str) -> None:
    """Of a list, one is enough; parameters of any form change nothing."""
    value = f"{kind.title()};{tail}"

    for media_range in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
        assert matches((*others, media_range), value)
    assert matches(others, value) is (kind in others)


@given(st.text(st.characters(max_codepoint=255)))
def test_any_content_type_is_read_without_an_error(value: str) -> None:
    """A host may send any bytes."""
    assert not matches(("image/png",), value) or "image/png" in value.lower()


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        ([], None),
        (["all"], None),
        (["nofollow, nosnippet"], None),
        (["noindex"], "noindex"),
        (["NoAI, noimageai"], "noai"),
        (["noimageindex"], "noimageindex"),
        (["none"], "none"),
        (["all", "nofollow,noindex"], "noindex"),
        (["max-image-preview: none"], None),
        (["max-snippet:50, noindex"], "noindex"),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST"], None),
        (["unavailable_after: Friday, 25-Jun-10 15:00:00 GMT, noindex"], "noindex"),
        (["googlebot: noindex"], None),
        (["googlebot: nofollow, noindex"], None),
        (["fetchfleet: noindex"], "noindex"),
        (["FetchFleet/1.0 : nofollow, NOAI"], "noai"),
        (["*: noai"], "noai"),
        (["googlebot: nofollow, fetchfleet: noai"], "noai"),
        (["fetchfleet: nofollow, googlebot: noai"], None),
        (["googlebot: noindex", "noai"], "noai"),
        (["noindex, googlebot: nofollow"], "noindex"),
        (["noindex: googlebot"], "noindex"),
        (["notnoindex, noindexing"], None),
        ([", ,:,::"], None),
    ],
)
def test_an_x_robots_tag_forbids_the_use_of_a_body(lines: list[str], rule: str | None) -> None:
    """Rules without a user agent count for every client; those after one only for that client."""
    assert forbidding_rule(lines, TOKEN) == rule


@given(
    st.lists(st.text(st.sampled_from("no:, aix*/\t"), max_size=12), max_size=3),
    st.sampled_from(["noai", "none"]),
)
def test_a_rule_in_a_line_of_its_own_always_counts(lines: list[str], rule: str) -> None:
    """Whatever the other lines say."""
    assert forbidding_rule([*lines, f" {rule.upper()} "], TOKEN) in FORBIDDING_RULES


@pytest.mark.parametrize(
    ("required", "status", "content_type", "tags", "reason"),
    [
        (requirements(), 200, None, ["noindex"], None),
        (requirements(tag="obey"), 200, None, ["noindex"], Reason.X_ROBOTS_REFUSED),
        (requirements(tag="obey"), 200, None, ["other: noindex"], None),
        (requirements(statuses=(200,)), 203, None, [], Reason.STATUS_REFUSED),
        (requirements(statuses=(404,)), 200, None, [], Reason.STATUS_REFUSED),
        (requirements(statuses=(404,)), 404, None, [], None),
        (requirements(types=("image/*",)), 200, "text/html", [], Reason.TYPE_REFUSED),
        (requirements(types=("image/*",)), 200, None, [], Reason.TYPE_REFUSED),
        (requirements(types=("image/*",)), 200, "image/gif", [], None),
        (requirements(types=("image/*",), statuses=(503,)), 503, "text/html", [], Reason.TYPE_REFUSED),
    ],
)
def test_a_response_is_refused_by_its_head(
    required: Requirements, status: int, content_type: str | None, tags: list[str], reason: Reason | None
) -> None:
    """The refusal is final and has the status."""
    refusal = refusal_of(required, status, content_type, tags, TOKEN)

    assert (refusal and refusal.reason) is reason
    assert refusal is None or (refusal.final and refusal.status == status and refusal.note)


def test_the_rest_of_a_body_has_the_status_of_a_range_and_may_omit_its_type() -> None:
    """A type that it does repeat is compared, and X-Robots-Tag counts."""
    required = requirements(types=("image/*",), statuses=(200,), tag="obey")

    def reason(content_type: str | None, *tags: str) -> Reason | None:
        refusal = refusal_of(required, 206, content_type, tags, TOKEN, resumed=True)
        return refusal.reason if refusal else None

    assert reason(None) is None
    assert reason("image/png") is None
    assert reason("text/html") is Reason.TYPE_REFUSED
    assert reason(None, "noai") is Reason.X_ROBOTS_REFUSED


def test_a_fetch_replaces_the_requirements_of_the_policy_one_by_one() -> None:
    """`accept` as a whole. Empty values of the fetch remove those of the policy."""
    policy = LanePolicy(
        accept=Accept(types=("image/*",), min_bytes=9), retry_statuses=(404,), x_robots="obey"
    )

    assert requirements_of(Fetch(url=URL), policy) == (policy.accept, (404,), "obey")
    for fetch, expected in (
        (Fetch(url=URL, accept=Accept(max_bytes=5)), (Accept(max_bytes=5), (404,), "obey")),
        (Fetch(url=URL, accept=Accept(), retry_statuses=()), (Accept(), (), "obey")),
        (Fetch(url=URL, x_robots="ignore"), (policy.accept, (404,), "ignore")),
    ):
        assert requirements_of(fetch, policy) == expected


def test_a_webhook_has_no_requirements() -> None:
    """A policy that accepts 404, or retries 202, must not change which responses deliver a webhook."""
    policy = LanePolicy(accept=Accept(statuses=(404,)), retry_statuses=(202,), x_robots="obey")
    webhook = Fetch(url=URL, method="POST", body="{}", sign=True)

    assert requirements_of(webhook, policy) == requirements_of(Fetch(url=URL), LanePolicy())


@pytest.mark.parametrize(
    ("status", "signal"),
    [
        (200, HostSignal.ANSWERED),
        (404, HostSignal.ANSWERED),
        (416, HostSignal.ANSWERED),
        (500, HostSignal.FAILED),
        (501, HostSignal.ANSWERED),
        (503, HostSignal.REFUSED),
    ],
)
def test_the_status_is_the_signal_of_the_host_whatever_becomes_of_the_body(
    status: int, signal: HostSignal
) -> None:
    """A stored, refused or invalid body of a 5xx counts against the host as one that is not stored."""
    outcomes: list[AttemptOutcome] = [
        Stored(status=status, at=None, validators=Validators(URL)),
        AlreadyExists(path="a", size_bytes=1, status=status),
        *(Failed(reason=reason, status=status) for reason in (*FINAL_REFUSALS, Reason.TOO_LARGE)),
    ]

    assert {host_signal_of(outcome) for outcome in outcomes} == {signal}
