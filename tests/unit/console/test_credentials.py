"""Tokens, sessions, the limit of logins, hosts and origins, for any input."""

import stat
from ipaddress import ip_address

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fetchfleet.worker.console.access.credentials import (
    FAILED_LOGINS_S,
    MAX_FAILED_LOGINS,
    SESSION_S,
    LoginLimit,
    Sessions,
    Token,
    TokenError,
    address_of,
    check_token_mode,
    hostname_of,
    is_loopback,
    is_same_origin,
)
from fetchfleet.worker.console.forms import own_path

KEY, ID = b"k" * 32, "0123456789abcdef" * 2
tokens = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=16, max_size=60)
times_s = st.floats(0, 1e9)


@given(tokens, st.text())
def test_only_the_token_matches(token: str, other: str) -> None:
    """Any other text does not."""
    assert Token(token).matches(token)
    assert Token(token).matches(other) == (token == other)


@given(st.text())
def test_a_token_is_long_printable_ascii(text: str) -> None:
    """Any other text is refused."""
    is_valid = len(text) >= 16 and all("!" <= char <= "~" for char in text)
    try:
        Token(text)
    except TokenError:
        assert not is_valid
    else:
        assert is_valid


@given(st.integers(0, 0o777))
def test_a_token_file_is_private(mode: int) -> None:
    """Others may not use it. Its group may read it."""
    if mode & 0o020 or mode & 0o007:
        with pytest.raises(TokenError):
            check_token_mode(stat.S_IFREG | mode)
    else:
        check_token_mode(stat.S_IFREG | mode)


@given(times_s, st.floats(-10, 2 * SESSION_S))
def test_a_session_lasts_its_time(now_s: float, later_s: float) -> None:
    """A cookie is valid until its session ends."""
    sessions = Sessions(KEY)
    session = sessions.new(ID, now_s)
    found = sessions.session_of(sessions.cookie(session), now_s + later_s)

    assert found == (session if now_s + later_s < session.ends_s else None)
    assert abs(session.ends_s - now_s - SESSION_S) <= 1


@given(st.text())
def test_another_text_is_no_session(text: str) -> None:
    """Its form does not matter."""
    sessions = Sessions(KEY)
    cookie = sessions.cookie(sessions.new(ID, 0))
    assume(text != cookie)

    assert sessions.session_of(text, 0) is None


@given(st.data())
def test_a_changed_cookie_is_no_session(data: st.DataObject) -> None:
    """One character suffices. A cookie of another key is none either."""
    sessions = Sessions(KEY)
    cookie = sessions.cookie(sessions.new(ID, 0))
    place = data.draw(st.integers(0, len(cookie) - 1))
    char = data.draw(st.sampled_from("0123456789abcdef."))
    assume(char != cookie[place])

    assert sessions.session_of(cookie[:place] + char + cookie[place + 1 :], 0) is None
    assert Sessions(b"other" * 8).session_of(cookie, 0) is None


def test_an_ended_session_stays_ended_until_its_cookie_expires() -> None:
    """Its form token is worthless with it; another session is not affected."""
    sessions = Sessions(KEY)
    session, other = sessions.new(ID, 0), sessions.new(ID[::-1], 0)
    sessions.end(session, 1)

    assert sessions.session_of(sessions.cookie(session), 2) is None
    assert sessions.session_of(sessions.cookie(other), 2) == other
    assert not sessions.is_form_token(other, sessions.form_token(session))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 50)), max_size=60))
def test_an_address_has_few_failed_logins_in_any_minute(attempts: list[tuple[str, float]]) -> None:
    """However they are spread. The wait that is named suffices."""
    limit, now_s = LoginLimit(), 0.0
    failed: dict[str, list[float]] = {"a": [], "b": []}
    for address, pause_s in attempts:
        now_s += pause_s
        wait_s = limit.wait_s(address, now_s)
        if wait_s > 0:
            assert limit.wait_s(address, now_s + wait_s + 0.001) == 0
            continue
        limit.failed(address, now_s)
        failed[address].append(now_s)
    for times in failed.values():
        for place in range(len(times) - MAX_FAILED_LOGINS):
            assert times[place + MAX_FAILED_LOGINS] - times[place] >= FAILED_LOGINS_S - 0.001


def test_a_client_cannot_avoid_the_limit_by_more_addresses_of_its_ipv6_network() -> None:
    """A network of 64 bits counts as one client; an IPv4 address counts alike in both notations."""
    limit = LoginLimit()
    for number in range(MAX_FAILED_LOGINS):
        limit.failed(f"2001:db8:0:1::{number}", 0)
        limit.failed(f"::ffff:192.0.2.{1 + number % 2}" if number % 2 else "192.0.2.1", 0)
        limit.failed("192.0.2.2", 0)

    assert limit.wait_s("2001:db8:0:1:ffff::1", 1) > 0
    assert limit.wait_s("2001:db8:0:2::1", 1) == 0
    assert limit.wait_s("::ffff:192.0.2.2", 1) > 0
    assert limit.wait_s("192.0.2.1", 1) == 0


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8::0", "2001:db8::"),
        ("fe80::1%<script>", "fe80::1"),
        ("<script>", "-"),
        ("x" * 60_000, "-"),
        ("", "-"),
    ],
)
def test_only_an_ip_address_is_an_address(text: str, address: str) -> None:
    """A proxy may pass on any X-Forwarded-For, which would be kept in memory and in the log."""
    assert address == address_of(text)


@pytest.mark.parametrize(
    ("header", "hostname"),
    [
        ("localhost:8080", "localhost"),
        ("LOCALHOST", "localhost"),
        ("[::1]:80", "[::1]"),
        ("a.example", "a.example"),
        ("a.example:", None),
        ("a@b", None),
        ("", None),
    ],
)
def test_the_name_in_a_host_header(header: str, hostname: str | None) -> None:
    """Without the port, in lower case."""
    assert hostname == hostname_of(header)


@given(st.text())
def test_only_names_of_this_machine_are_loopback(text: str) -> None:
    """No other text is taken for one."""
    if is_loopback(text):
        host = text.strip("[]")
        assert host.lower().rstrip(".") == "localhost" or ip_address(host).is_loopback


@given(st.text(), st.text())
def test_an_origin_is_compared_with_the_whole_host(origin: str, host: str) -> None:
    """A part of it does not suffice."""
    if is_same_origin(origin, host):
        assert origin.lower() in {f"http://{host}".lower(), f"https://{host}".lower()}


@given(st.text() | st.text("/\\.:a?").map(lambda text: f"/{text}"))
def test_a_login_leads_to_a_path_of_this_server(text: str) -> None:
    """A browser reads two slashes, or a slash and a backslash, as the start of another host."""
    path = own_path(text)

    assert path.startswith("/")
    assert not path.startswith(("//", "/\\"))
    assert path.isprintable()
