"""The forms in which an operator names a host."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.jobs.contract.urls import lane_of_url, parse_url
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.policy.names import DEFAULT, concerns, covering, covers, host_named

FORMS = [
    ("api.example.com", "api.example.com"),
    (" API.Example.COM. ", "api.example.com"),
    ("api.example.com:9000", "api.example.com"),
    ("api.example.com:", "api.example.com"),
    ("http://api.example.com:9000/", "api.example.com"),
    ("HTTPS://Api.example.com/a?b#c", "api.example.com"),
    ("https://user:secret@api.example.com/x", "api.example.com"),
    ("ftp://api.example.com", "api.example.com"),
    ("http://h:9000/", "h"),
    ("http://127.0.80.3:8080", "127.0.80.3"),
    ("127.0.80.3", "127.0.80.3"),
    ("2606:4700::1111", "2606:4700::1111"),
    ("[2606:4700:0::1111]", "2606:4700::1111"),
    ("[2606:4700::1111]:443", "2606:4700::1111"),
    ("http://[2606:4700::1111]:8080/x", "2606:4700::1111"),
    ("::1", "::1"),
    ("::ffff:127.0.80.3", "127.0.80.3"),
    ("[::FFFF:7f00:5003]:8080", "127.0.80.3"),
    ("http://[0:0:0:0:0:ffff:7f00:5003]/x", "127.0.80.3"),
    ("127。0｡80.3", "127.0.80.3"),
    ("BÜCHER.example", "xn--bcher-kva.example"),
    ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ("*.CDN.net", "*.cdn.net"),
    ("*.cdn.net.:443", "*.cdn.net"),
    ("https://*.cdn.net/", "*.cdn.net"),
    ("*.bücher.example", "*.xn--bcher-kva.example"),
    ("default", DEFAULT),
    (" Default ", DEFAULT),
]


@pytest.mark.parametrize(("text", "name"), FORMS)
def test_a_host_is_accepted_in_every_form(text: str, name: str) -> None:
    """The result is the name of a lane, a pattern or `default`, and names itself."""
    assert name == host_named(text)
    assert name == host_named(name)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "Name a host"),
        ("  ", "Name a host"),
        ("*", "all hosts are `default`"),
        ("**", "all hosts are `default`"),
        ("*.", "a pattern is *. and a domain"),
        ("a.*.com", "a pattern is *. and a domain"),
        ("*example.com", "a pattern is *. and a domain"),
        ("*.*.com", "a pattern is *. and a domain"),
        ("a.example/b", "leave the path out"),
        ("10.0.0.0/8", "leave the path out"),
        ("http://", "Name a host"),
        ("http:///x", "Name a host"),
        ("a b", "Name a host"),
        ("a.example:http", "the port must be a number"),
        ("[::1]x", "the port must be a number"),
        ("[::1", "IPv6 address"),
        ("[a.example]", "IPv6 address"),
        ("1:2", "Name a host"),
        ("fe80::1%eth0", "zone ID"),
        ("::1::2", "not an IPv6 address"),
        ("*.80.3", "Name a host"),
        ("*.127.0.0.1", "a pattern cannot cover addresses"),
        ("*.::1", "a pattern cannot cover addresses"),
        ("127.1", "IPv4"),
        ("a..b", "Name a host"),
        ("http://default/", "stands for all hosts"),
        ("default:80", "stands for all hosts"),
        ("default.", "stands for all hosts"),
        ("x" * 300, "Name a host"),
    ],
)
def test_text_that_names_no_host_is_refused_with_the_remedy(text: str, remedy: str) -> None:
    """The message quotes the text."""
    with pytest.raises(PolicyError, match="does not name a host") as caught:
        host_named(text)

    assert remedy in str(caught.value)
    assert repr(text.strip()[:80])[1:-1].removeprefix("http://").rstrip("/x") in str(caught.value)


def test_a_refused_url_does_not_show_its_password() -> None:
    """The message names the host only."""
    with pytest.raises(PolicyError) as caught:
        host_named("https://user:secret@no..host/token")

    assert "no..host" in str(caught.value)
    assert not {"secret", "token", "user"} & {*str(caught.value).replace("/", " ").split()}


@given(st.text())
def test_any_text_is_a_name_or_a_policy_error(text: str) -> None:
    """A name names itself."""
    try:
        name = host_named(text)
    except PolicyError:
        return
    assert name == host_named(name)


LABELS = st.sampled_from(["a", "b", "cdn", "example", "net", "x-1"])
HOSTS = st.lists(LABELS, min_size=1, max_size=5).map(".".join)
NAMES = st.one_of(HOSTS, HOSTS.map("*.{}".format), st.just(DEFAULT))


@given(
    st.sampled_from(["http", "HTTPS"]),
    st.sampled_from(["", "u@", "u:p@"]),
    HOSTS,
    st.sampled_from(["", ":1", ":65535"]),
    st.sampled_from(["", "/", "/a/b", "?q", "#f", "/a?b#c"]),
)
def test_a_url_names_the_lane_of_its_fetches(scheme: str, user: str, host: str, port: str, rest: str) -> None:
    """Its user is ignored."""
    lane = lane_of_url(parse_url(f"{scheme}://{host}{port}{rest}").text)
    assert lane == host_named(f"{scheme}://{user}{host}{port}{rest}")


@given(NAMES, st.lists(NAMES))
def test_covering_names_are_ordered_from_the_narrowest(name: str, others: list[str]) -> None:
    """`default` is last, and longer patterns precede shorter ones."""
    chain = [*covering(name)]

    assert [name, DEFAULT][: 1 if name == DEFAULT else 2] == [chain[0], chain[-1]][: len(chain)]
    assert len(chain) == len(set(chain))
    for other in {*others, *chain}:
        assert concerns(other, name) == (other in chain)
    patterns = [other for other in chain if covers(other, name)]
    assert patterns == sorted(patterns, key=len, reverse=True)
