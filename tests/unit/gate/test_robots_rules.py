"""The rules of a robots.txt, and the meaning of its absence (RFC 9309)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet import Fetch, Outcome, Reason
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.urls import origin_of_url
from fetchfleet.worker.fetch.rules.decide import Finish, HostState, Retry, defer_for_robots
from fetchfleet.worker.fetch.rules.outcome import Answered, Failed
from fetchfleet.worker.gate import gate, robots_rules
from fetchfleet.worker.gate.gate import Admit, Closed, WaitReason
from fetchfleet.worker.gate.robots_rules import (
    ALLOW_ALL,
    MAX_BYTES,
    CachedRobots,
    KnownRobots,
    RobotsRules,
    RobotsStatus,
)
from fetchfleet.worker.gate.state import GateState
from fetchfleet.worker.policy.file import parse_policy
from fetchfleet.worker.policy.model import LanePolicy, PolicyError

NOW_MS = 1_700_000_000_000
OBEY = LanePolicy(robots="obey")
ENTRY = Entry(id="0123456789abcdef-00000000", deadline_ms=NOW_MS + 60_000, fetch=Fetch(url="http://a/x"))


def rules(text: str, token: str = "fetchfleet") -> RobotsRules:
    """Return the rules of a text, made as a worker makes them."""
    return RobotsRules(robots_rules.groups_for(token, text), token)


def allows(text: str, path: str, token: str = "fetchfleet") -> bool:
    """Return whether the text allows the path."""
    return rules(text, token).allows(f"http://a.example{path}")


@pytest.mark.parametrize(
    ("lines", "path", "allowed"),
    [
        ("", "/x", True),
        ("Disallow: /", "/x", False),
        ("Disallow:", "/x", True),
        ("Disallow: /private", "/private/a", False),
        ("Disallow: /private", "/public", True),
        ("Disallow: /a\nAllow: /a/b", "/a/b/c", True),  # the longest match wins, in any order
        ("Allow: /a/b\nDisallow: /a", "/a/c", False),
        ("Allow: /a\nDisallow: /a", "/a", True),  # of two as long, the one that allows
        ("Disallow: /*.gif$", "/b/c.gif", False),
        ("Disallow: /*.gif$", "/b/c.gif?x=1", True),
        ("Disallow: /a*c", "/abbbc/d", False),
        ("Disallow: /*?key=", "/q?key=1", False),
        ("Disallow: /caf%C3%A9", "/caf%c3%a9", False),
        ("Disallow: /", "/robots.txt", True),
        ("disallow : /x # a comment", "/x", False),
        ("Sitemap: http://a/map\nDisallow: /x", "/x", False),
    ],
)
def test_the_longest_match_decides(lines: str, path: str, *, allowed: bool) -> None:
    """Wildcards, ends and escapes follow RFC 9309 §2.2."""
    assert allowed is allows(f"User-agent: *\n{lines}", path)


GROUPS = """
User-agent: other
Disallow: /

User-agent: Fetch
User-agent: FetchFleet/2.0
Disallow: /own
Sitemap: http://a/map

User-agent: *
Disallow: /all

user-agent: fetchfleet
Disallow: /more
"""


@pytest.mark.parametrize(
    ("token", "path", "allowed"),
    [
        ("fetchfleet", "/own", False),
        ("fetchfleet", "/more", False),
        ("fetchfleet", "/all", True),
        ("fetchfleet-images", "/own", True),
        ("fetchfleet-images", "/all", False),
        ("fleet", "/own", True),
        ("other", "/x", False),
        ("nobody", "/more", True),
        ("nobody", "/all", False),
        ("*", "/all", False),
    ],
)
def test_the_groups_of_the_product_token_apply_else_those_for_all(
    token: str, path: str, *, allowed: bool
) -> None:
    """Groups of one name are merged. A name is a whole token in any case. `*` is for all others."""
    assert allowed is allows(GROUPS, path, token)


def test_only_the_groups_of_the_product_token_are_kept() -> None:
    """Ten thousand robots with all their rules cost as much as one."""
    agents = "".join(f"User-agent: robot{n}\n" for n in range(10_000))
    text = agents + "User-agent: *\n" + "Disallow: /x\n" * 3

    assert "User-agent: *" + "\nDisallow: /x" * 3 == robots_rules.groups_for("fetchfleet", text)


@pytest.mark.parametrize(
    ("value", "delay_s"), [("2", 2), ("0.5", 0.5), ("86400", 60), ("-1", 0), ("nan", 0), ("soon", 0), ("", 0)]
)
def test_a_crawl_delay_is_capped_at_a_minute(value: str, delay_s: float) -> None:
    """A value that is not a number is ignored."""
    assert delay_s == rules(f"User-agent: *\nCrawl-delay: {value}").crawl_delay_s


@given(st.binary(max_size=300))
def test_any_bytes_yield_rules(body: bytes) -> None:
    """It holds for arbitrary bodies."""
    kept = robots_rules.cached_of("fetchfleet", 200, body, NOW_MS)

    assert isinstance(RobotsRules(kept.groups, kept.token).allows("http://a/x"), bool)


@given(
    st.lists(
        st.sampled_from(["User-agent: *", "User-agent: us", "User-agent: b", "Disallow: /x", "Allow: /x/y"])
    )
)
def test_the_kept_groups_give_the_verdicts_of_the_whole_file(lines: list[str]) -> None:
    """The omitted groups do not apply."""
    text = "\n".join(lines)
    whole = RobotsRules(text, "us")

    for path in ("/x", "/x/y", "/z"):
        assert whole.allows(f"http://a{path}") is allows(text, path, "us")


def test_a_truncated_line_is_dropped() -> None:
    """Only the first 500 KiB of a file count. Half a rule could forbid too much."""
    head = b"User-agent: *\nDisallow: /x\n"
    body = head + b"#" * (MAX_BYTES - len(head) - 12) + b"\nDisallow: /"

    text = robots_rules.text_of(body + b"y\n")

    assert text.startswith("User-agent: *\nDisallow: /x\n#")
    assert text.endswith("#\n")


@pytest.mark.parametrize(
    ("status", "means"),
    [
        (200, RobotsStatus.RULES),
        (206, RobotsStatus.RULES),
        (301, RobotsStatus.NONE),
        (304, RobotsStatus.NONE),
        (401, RobotsStatus.NONE),
        (404, RobotsStatus.NONE),
        (410, RobotsStatus.NONE),
        (429, RobotsStatus.WAIT),
        (500, RobotsStatus.WAIT),
        (503, RobotsStatus.WAIT),
    ],
)
def test_the_status_decides_between_reading_allowing_and_waiting(status: int, means: RobotsStatus) -> None:
    """RFC 9309 §2.3.1. A 429 makes the lane wait."""
    assert means is robots_rules.status_of(status)


@pytest.mark.parametrize(
    ("user_agent", "token"),
    [("fetchfleet/0.1", "fetchfleet"), ("Our-Bot/2 (+http://a)", "our-bot"), ("Bot", "bot"), ("", "*")],
)
def test_the_product_token_is_the_first_word_of_the_user_agent(user_agent: str, token: str) -> None:
    """The version is left out."""
    assert token == robots_rules.token_of(user_agent)


def test_a_robots_txt_is_kept_for_a_day_at_most() -> None:
    """Its absence is kept for an hour."""
    there = robots_rules.cached_of("us", 200, b"User-agent: us\nDisallow: /", NOW_MS)
    none = robots_rules.cached_of("us", 404, b"<html>", NOW_MS)

    assert there == CachedRobots(
        token="us", groups="User-agent: us\nDisallow: /", until_ms=NOW_MS + 24 * 3600 * 1000
    )
    assert none == CachedRobots(token="us", groups="", until_ms=NOW_MS + 3600 * 1000)


def test_a_saved_robots_txt_counts_only_for_the_same_token_and_while_fresh() -> None:
    """Other workers may have another product token, and no value in Redis is trusted."""
    kept = CachedRobots(token="us", groups="", until_ms=NOW_MS + 1000)
    text = robots_rules.to_json(kept)

    assert kept == robots_rules.from_json(text, "us", NOW_MS)
    assert robots_rules.from_json(text, "them", NOW_MS) is None
    assert robots_rules.from_json(text, "us", NOW_MS + 1000) is None
    assert robots_rules.from_json(text, "us", NOW_MS - 2 * 24 * 3600 * 1000) is None
    assert robots_rules.from_json(b"{", "us", NOW_MS) is None
    assert robots_rules.from_json(b"\xff", "us", NOW_MS) is None


def test_the_rules_of_an_origin_expire() -> None:
    """The longest delay of the origins applies to the host."""
    known = KnownRobots()
    slow = rules("User-agent: *\nCrawl-delay: 3")
    known.learn("http://a", slow, NOW_MS + 1)
    known.learn("https://a", ALLOW_ALL, NOW_MS + 1)

    assert known.rules("http://a", NOW_MS) is slow
    assert known.rules("http://a", NOW_MS + 1) is None
    assert known.rules("http://b", NOW_MS) is None
    assert known.crawl_delay_s() == 3


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://a/", "http://a"),
        ("https://a.example:8443/x/y", "https://a.example:8443"),
        ("http://[::1]:81/", "http://[::1]:81"),
        ("http://a/x?u=http://b/", "http://a"),
    ],
)
def test_an_origin_is_scheme_host_and_port(url: str, origin: str) -> None:
    """Each origin has its own robots.txt."""
    assert origin == origin_of_url(url)


def test_a_crawl_delay_spaces_starts() -> None:
    """The delay applies from the request on, whatever the burst, unless the policy ignores robots.txt."""
    policy = LanePolicy(robots="obey", rate_per_s=100, burst=50)
    state = gate.crawl_delay_received(GateState(), 2.0, NOW_MS)

    assert Closed(NOW_MS + 2000, WaitReason.RATE_LIMIT) == gate.admit(state, policy, 0, NOW_MS)
    state = gate.started(state, policy, NOW_MS + 2000)
    assert Closed(NOW_MS + 4000, WaitReason.RATE_LIMIT) == gate.admit(state, policy, 0, NOW_MS + 2001)
    assert isinstance(gate.admit(state, LanePolicy(), 0, NOW_MS + 2001), Admit)


def test_a_slower_rate_of_the_policy_applies() -> None:
    """A crawl delay never makes a lane faster."""
    policy = LanePolicy(robots="obey", rate_per_s=0.1)
    state = gate.started(gate.crawl_delay_received(GateState(), 2.0, 0), policy, NOW_MS)

    assert Closed(NOW_MS + 10_000, WaitReason.RATE_LIMIT) == gate.admit(state, policy, 0, NOW_MS)


def test_a_known_crawl_delay_does_not_delay_the_first_fetch() -> None:
    """No request was sent just before."""
    assert isinstance(gate.admit(gate.crawl_delay_received(GateState(), 2.0, 0), OBEY, 0, NOW_MS), Admit)


def test_an_unavailable_robots_txt_is_retried_with_back_off() -> None:
    """No fetch starts meanwhile."""
    waits = [
        gate.robots_unavailable(GateState(failures=n), OBEY, NOW_MS, 0.0).robots_until_ms - NOW_MS
        for n in (1, 2, 3, 9)
    ]
    state = gate.robots_unavailable(GateState(failures=1), OBEY, NOW_MS, 0.0)

    assert [1000, 2000, 4000, 60_000] == waits
    assert Closed(NOW_MS + 1000, WaitReason.ROBOTS) == gate.admit(state, OBEY, 0, NOW_MS + 999)
    assert isinstance(gate.admit(state, OBEY, 0, NOW_MS + 1000), Admit)
    assert isinstance(gate.admit(state, LanePolicy(), 0, NOW_MS), Admit)


def test_a_501_for_a_robots_txt_is_retried_with_back_off() -> None:
    """The breaker ignores that status. The back-off ends once the rules are known."""
    state, waits = GateState(), []
    for _ in range(4):
        state = gate.robots_unavailable(state, OBEY, NOW_MS, 0.0)
        waits.append(state.robots_until_ms - NOW_MS)
    known = gate.crawl_delay_received(state, 0.0, 0)

    assert [1000, 2000, 4000, 8000] == waits
    assert NOW_MS + 1000 == gate.robots_unavailable(known, OBEY, NOW_MS, 0.0).robots_until_ms


@pytest.mark.parametrize(
    ("asked_s", "wait_ms"), [(None, 1000), (0.5, 1000), (20.0, 20_000), (1e9, 3_600_000)]
)
def test_retry_after_of_a_robots_txt_is_kept(asked_s: float | None, wait_ms: int) -> None:
    """The cap of the policy limits the wait, as for a fetch."""
    state = gate.robots_unavailable(GateState(), OBEY, NOW_MS, 0.0, asked_s)

    assert NOW_MS + wait_ms == state.robots_until_ms


@pytest.mark.parametrize(
    ("happened", "reason", "throttles"),
    [
        (Answered(status=503), Reason.HTTP_STATUS, 0),
        (Answered(status=429), Reason.THROTTLED, 1),
        (Answered(status=503, wait_s=9), Reason.THROTTLED, 1),
        (Failed(reason=Reason.CONNECT), Reason.CONNECT, 0),
    ],
)
def test_waiting_for_a_robots_txt_charges_no_attempt(
    happened: Answered | Failed, reason: Reason, throttles: int
) -> None:
    """The URL of the fetch was not requested."""
    again = defer_for_robots(ENTRY, happened, NOW_MS, HostState(opens_ms=NOW_MS + 3000))

    assert isinstance(again, Retry)
    assert (3.0, reason) == (again.wait_s, again.reason)
    assert (0, throttles, reason) == (again.entry.attempts, again.entry.throttles, again.entry.last)


def test_a_wait_for_a_robots_txt_ends() -> None:
    """The fetch fails when the host is dead or when its deadline comes first."""
    broke = Failed(reason=Reason.CONNECT)

    assert defer_for_robots(ENTRY, broke, NOW_MS, HostState(dead=True)) == Finish(
        outcome=Outcome.FAILED, reason=Reason.HOST_DEAD
    )
    assert defer_for_robots(ENTRY, broke, NOW_MS, HostState(opens_ms=ENTRY.deadline_ms)) == Finish(
        outcome=Outcome.FAILED, reason=Reason.DEADLINE
    )


def test_a_policy_ignores_or_obeys_robots_txt() -> None:
    """No other value is accepted."""
    assert "obey" == parse_policy('[host."a.example"]\nrobots = "obey"').for_lane("a.example").robots
    with pytest.raises(PolicyError, match="robots: 'maybe' is not one of ignore, obey"):
        parse_policy('[default]\nrobots = "maybe"')
