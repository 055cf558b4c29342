"""RateLimit fields of all generations, and their effect on the gate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.gate.gate import Admit, Closed, WaitReason, admit, quota_received, started
from fetchfleet.worker.gate.quota import MAX_WINDOW_S, Quota, quota_of
from fetchfleet.worker.gate.state import GateState
from fetchfleet.worker.policy.model import LanePolicy

NOW_MS = 1_700_000_000_000
POLICY = LanePolicy(concurrency=50)
FIELDS = [
    "ratelimit",
    "ratelimit-policy",
    "ratelimit-remaining",
    "ratelimit-reset",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
]


def read(**fields: str) -> Quota | None:
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    return quota_of(headers.get, NOW_MS)


@pytest.mark.parametrize(
    ("value", "quota"),
    [
        ('"default";r=50;t=30', Quota(50, 30.0)),
        ('"default"; r=50; t=30', Quota(50, 30.0)),
        ('"a";r=0;t=1', Quota(0, 1.0)),
        ('"a";r=1;t=1', Quota(1, 1.0)),
        ('"";r=5;t=7;pk=:YQ==:;x', Quota(5, 7.0)),
        ('"a";r=1;r=2;t=3', Quota(2, 3.0)),
        ('"hour";r=100;t=3600', Quota(100, MAX_WINDOW_S)),
        ('"a";r=50;t=60, "b";r=2;t=10', Quota(2, 10.0)),
        ('"a";r=2;t=10, "b";r=0;t=600', Quota(0, 600.0)),
        ('"a";r=2;t=10, b;r=0;t=600, 5', Quota(2, 10.0)),
        ('"a";r=999999999999999;t=999999999999999', Quota(999_999_999_999_999, MAX_WINDOW_S)),
    ],
)
def test_the_structured_field_gives_the_remaining_quota(value: str, quota: Quota | None) -> None:
    """A List of Strings (RFC 9651). The last of two parameters counts, and the tightest of several items."""
    assert quota == read(ratelimit=value)


@pytest.mark.parametrize(
    ("ratelimit", "policy", "quota"),
    [
        (None, '"burst";q=100;w=60', Quota(100, 60.0)),
        (None, '"burst";q=100;w=60,"daily";q=1000;w=86400', Quota(100, 60.0)),
        ('"burst";r=50;t=30', '"burst";q=100;w=60', Quota(50, 30.0)),
        ('"burst";r=50', '"burst";q=100;w=60', Quota(50, 60.0)),
        ('"daily";r=9000;t=40000', '"daily";q=10000;w=86400,"burst";q=10;w=1', Quota(10, 1.0)),
        ('"bytes";r=0;t=30', '"bytes";q=100;w=60;qu="content-bytes"', None),
        ('"a";r=7;t=30', '"slots";q=1;qu="concurrent-requests"', Quota(7, 30.0)),
        ('"a";r=7;t=30', '"a";q=10', Quota(7, 30.0)),
        ('"a";r=7', '"a";q=10', None),
        (None, '"a";q=1.5;w=60', None),
        (None, '"a";q=?1;w=60', None),
        (None, '"a";q=10;w="60"', None),
        (None, '"a";q=10;w=0', None),
        (None, "a;q=10;w=60", None),
        ("junk;;", '"a";q=10;w=60', Quota(10, 60.0)),
        ('"a";r=7;t=30', "junk;;", Quota(7, 30.0)),
    ],
)
def test_a_rate_limit_policy_fills_in_what_the_quota_omits(
    ratelimit: str | None, policy: str, quota: Quota | None
) -> None:
    """Units other than requests are ignored."""
    fields = {"ratelimit_policy": policy, **({"ratelimit": ratelimit} if ratelimit else {})}
    assert quota == read(**fields)


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "default;r=50;t=30",
        '"default" ;r=50;t=30',
        ":YQ==:;r=50;t=30",
        '("a" "b");r=50;t=30',
        '%"a";r=50;t=30',
        "5;r=50;t=30",
        '"a";r=5.0;t=30',
        '"a";r=5;t=30.5',
        '"a";r=-1;t=30',
        '"a";r=5;t=-30',
        '"a";r=5;t=0',
        '"a";r=?1;t=30',
        '"a";r=5;t=?1',
        '"a";r="5";t=30',
        '"a";r=@5;t=30',
        '"a";r;t',
        '"a";r=5',
        '"a";t=5',
        '"a"',
        '"a";r=5;t=30,',
        '"a";r=5;t=30 "b"',
        '"a";R=5;T=30',
        '"a";r=9999999999999999;t=30',
        '"ä";r=5;t=30',
        '"日";r=5;t=30',
        '"a";r=٣;t=30',
        "limit=100, remaining=50, reset=5",
        '"a;r=5;t=30',
        '"a";r=5;t=30\x00',
        "(" * 10_000,
        '"' * 10_000,
        "a;" * 5_000,
    ],
)
def test_a_malformed_structured_field_is_ignored(value: str) -> None:
    """The whole field is ignored (RFC 9651). So is an item of another shape than the draft's."""
    assert read(ratelimit=value) is None


@pytest.mark.parametrize("prefix", ["ratelimit", "x_ratelimit"])
@pytest.mark.parametrize(
    ("remaining", "reset", "quota"),
    [
        ("5", "30", Quota(5, 30.0)),
        (" 5 ", "\t30", Quota(5, 30.0)),
        ("0", "3600", Quota(0, MAX_WINDOW_S)),
        ("5", str(NOW_MS // 1000 + 30), Quota(5, 30.0)),
        ("5", str(NOW_MS + 1500), Quota(5, 1.5)),
        ("5", str(NOW_MS + 3_600_000), Quota(5, MAX_WINDOW_S)),
        ("5", "9" * 19, Quota(5, MAX_WINDOW_S)),
        ("5", str(NOW_MS // 1000), None),
        ("5", str(NOW_MS - 1), None),
        ("5", "0", None),
        ("-1", "30", None),
        ("5", "-30", None),
        ("5.0", "30", None),
        ("5", "30.0", None),
        ("1e3", "30", None),
        ("5", "", None),
        ("", "30", None),
        ("5, 6", "30", None),
        ("٣", "30", None),
        ("²", "30", None),
        ("5", "9" * 5000, None),
        ("5", "soon", None),
    ],
)
def test_the_plain_fields_give_the_remaining_quota(
    prefix: str, remaining: str, reset: str, quota: Quota | None
) -> None:
    """Reset is in seconds from now, or an epoch in seconds or ms."""
    assert quota == read(**{f"{prefix}_remaining": remaining, f"{prefix}_reset": reset})


def test_the_newest_valid_generation_counts() -> None:
    """RateLimit before RateLimit-Remaining before X-RateLimit-Remaining."""
    plain = {"ratelimit_remaining": "2", "ratelimit_reset": "20"}
    old = {"x_ratelimit_remaining": "3", "x_ratelimit_reset": "30"}

    assert Quota(1, 10.0) == read(ratelimit='"a";r=1;t=10', **plain, **old)
    assert Quota(2, 20.0) == read(ratelimit="junk", **plain, **old)
    assert Quota(2, 20.0) == read(**plain, **old)
    assert Quota(3, 30.0) == read(ratelimit_remaining="2", **old)
    assert read() is None


@given(
    st.dictionaries(st.sampled_from(FIELDS), st.text() | st.from_regex(r'"a";r=[^"]*;t=.*', fullmatch=True))
)
def test_arbitrary_fields_yield_a_quota_or_none(headers: dict[str, str]) -> None:
    """A hostile header raises no error, and no window exceeds ten minutes."""
    quota = quota_of(headers.get, NOW_MS)

    assert quota is None or (quota.remaining >= 0 and 0 < quota.window_s <= MAX_WINDOW_S)


def starts_ms(state: GateState, policy: LanePolicy, for_ms: int, in_flight: int = 0) -> list[int]:
    """Return the starts, in ms from now, if fetches always wait and end at once."""
    starts: list[int] = []
    now_ms = NOW_MS
    while now_ms < NOW_MS + for_ms and len(starts) < 1000:
        verdict = admit(state, policy, in_flight, now_ms)
        if isinstance(verdict, Closed):
            now_ms = verdict.until_ms
        else:
            state = started(state, policy, now_ms)
            starts.append(now_ms - NOW_MS)
    return starts


def busy(requests: int) -> GateState:
    """Return a lane that has just started that many."""
    state = GateState()
    for _ in range(requests):
        state = started(state, POLICY, NOW_MS)
    return state


@given(st.integers(0, 60), st.integers(0, 200), st.floats(0.5, 600), st.integers(0, 60))
def test_no_more_fetches_start_in_the_window_than_remain(
    traffic: int, remaining: int, window_s: float, in_flight: int
) -> None:
    """It holds for any pacing before. Requests in flight may not be counted by the host yet."""
    state = quota_received(busy(traffic), Quota(remaining, window_s), in_flight, NOW_MS)

    assert len(starts_ms(state, POLICY, int(window_s * 1000))) <= max(0, remaining - in_flight)


@given(st.integers(0, 30), st.integers(1, 30), st.integers(1, 50), st.integers(1, 2000))
def test_a_host_with_a_quota_never_has_to_refuse(
    traffic: int, limit: int, parallel: int, latency_ms: int
) -> None:
    """It accepts a fixed number a minute and sends the remaining quota with each response."""
    window_ms, policy = 60_000, LanePolicy(concurrency=parallel)
    state, now_ms, counted, ends = busy(traffic), NOW_MS, 1, list[int]()
    state = quota_received(state, Quota(limit - counted, window_ms / 1000), 0, now_ms)
    while now_ms < NOW_MS + window_ms:
        verdict = admit(state, policy, len(ends), now_ms)
        if isinstance(verdict, Admit):
            state, counted = started(state, policy, now_ms), counted + 1
            ends.append(now_ms + latency_ms)
            continue
        now_ms = min([*ends, *([verdict.until_ms] if isinstance(verdict, Closed) else [])])
        while ends and ends[0] <= now_ms < NOW_MS + window_ms:
            ends.pop(0)
            left_s = (NOW_MS + window_ms - now_ms) / 1000
            state = quota_received(state, Quota(max(0, limit - counted), left_s), len(ends), now_ms)

    assert counted <= limit


@pytest.mark.parametrize(("remaining", "spaced"), [(61, False), (60, False), (59, True), (6, True)])
def test_a_pace_below_the_quota_is_not_slowed(remaining: int, *, spaced: bool) -> None:
    """Ten in the last ten seconds are sixty in a minute."""
    state = quota_received(busy(10), Quota(remaining, 60.0), 0, NOW_MS)

    assert spaced is isinstance(admit(state, POLICY, 0, NOW_MS), Closed)


def test_the_remaining_quota_is_spread_over_the_window() -> None:
    """Six for a minute, after ten starts just now: one every ten seconds."""
    state = quota_received(busy(10), Quota(6, 60.0), 0, NOW_MS)

    assert [10_000, 20_000, 30_000, 40_000, 50_000] == starts_ms(state, POLICY, 60_000)


def test_an_exhausted_quota_closes_the_lane_until_its_window_ends() -> None:
    """It opens to the millisecond, even if the lane is paced too."""
    policy = LanePolicy(rate_per_s=5)
    state = quota_received(started(GateState(), policy, NOW_MS), Quota(0, 30.0), 0, NOW_MS)

    assert Closed(NOW_MS + 30_000, WaitReason.QUOTA) == admit(state, policy, 0, NOW_MS + 29_999)
    assert isinstance(admit(state, policy, 0, NOW_MS + 30_000), Admit)


def test_fetches_in_flight_are_subtracted_from_the_quota() -> None:
    """Five remain, five are in flight."""
    state = quota_received(busy(5), Quota(5, 30.0), 5, NOW_MS)

    assert Closed(NOW_MS + 30_000, WaitReason.QUOTA) == admit(state, POLICY, 5, NOW_MS)


def test_a_quota_ends_with_its_window() -> None:
    """Its last start delays nothing after the window, at any interval, paced or not."""
    policy = LanePolicy(rate_per_s=100)
    state = quota_received(busy(10), Quota(1, 600.0), 0, NOW_MS)
    state = started(state, policy, NOW_MS + 599_000)

    assert isinstance(admit(state, policy, 0, NOW_MS + 600_000), Admit)


def test_a_newer_quota_replaces_the_older() -> None:
    """The spacing of the older one is dropped."""
    state = quota_received(busy(10), Quota(0, 600.0), 0, NOW_MS)
    state = quota_received(state, Quota(10_000, 600.0), 0, NOW_MS + 1)

    assert isinstance(admit(state, POLICY, 0, NOW_MS + 1), Admit)


def test_a_policy_can_ignore_quotas() -> None:
    """It ignores a quota that was learned before, too."""
    heedless = LanePolicy(concurrency=50, quota=False)
    state = quota_received(busy(10), Quota(0, 600.0), 0, NOW_MS)

    assert isinstance(admit(state, heedless, 0, NOW_MS), Admit)
