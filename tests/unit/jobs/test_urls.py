"""URLs at the doors of the fleet: one canonical spelling, and refusals of ambiguous ones."""
# ruff: noqa: RUF001 - look-alike characters are the input under test

from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from struct import unpack
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fetchfleet.jobs.contract.urls import (
    MAX_URL_BYTES,
    FetchUrl,
    UrlError,
    canonical_url,
    lane_of_name,
    lane_of_url,
    parse_host,
    parse_url,
    same_origin,
)
from fetchfleet.worker.fetch.rules.redirects import target_of
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.policy.names import host_named

LABEL_63 = "a" * 63
HOST_253 = f"{LABEL_63}.{LABEL_63}.{LABEL_63}.{'a' * 61}"

CANONICAL = [
    ("http://example.com", "http://example.com/"),
    ("HTTP://EXAMPLE.COM", "http://example.com/"),
    ("hTTpS://Example.Com/Path?Q=A", "https://example.com/Path?Q=A"),
    ("http://example.com.", "http://example.com/"),
    ("http://example.com./x", "http://example.com/x"),
    ("http://example.com:80/", "http://example.com/"),
    ("https://example.com:443/", "https://example.com/"),
    ("http://example.com:443/", "http://example.com:443/"),
    ("http://example.com:0080/", "http://example.com/"),
    ("http://example.com:000080/", "http://example.com/"),
    (f"http://example.com:{'0' * 5000}443/", "http://example.com:443/"),
    ("http://example.com:", "http://example.com/"),
    ("http://example.com:/x", "http://example.com/x"),
    ("https://example.com:?q", "https://example.com/?q"),
    ("http://example.com.:#f", "http://example.com/"),
    ("http://127.0.0.1:/x", "http://127.0.0.1/x"),
    ("http://[::1]:/x", "http://[::1]/x"),
    ("http://example.com:1/", "http://example.com:1/"),
    ("http://example.com:65535/", "http://example.com:65535/"),
    ("http://example.com?q", "http://example.com/?q"),
    ("http://example.com?", "http://example.com/?"),
    ("http://example.com?@evil.example", "http://example.com/?@evil.example"),
    ("http://example.com#@127.0.0.1/", "http://example.com/"),
    ("http://example.com/a#b?c", "http://example.com/a"),
    ("http://example.com/a:b@c", "http://example.com/a:b@c"),
    ("http://example.com/%0d%0aX:%20y", "http://example.com/%0d%0aX:%20y"),
    ("http://example.com/%e2%82%AC", "http://example.com/%e2%82%AC"),
    ("http://example.com/€?ü=ß", "http://example.com/%E2%82%AC?%C3%BC=%C3%9F"),
    ("http://example.com/100%?a=%zz", "http://example.com/100%25?a=%25zz"),
    ("http://example.com/?ids[]=1", "http://example.com/?ids[]=1"),
    ('http://example.com/<a>"{b}|^`', "http://example.com/%3Ca%3E%22%7Bb%7D%7C%5E%60"),
    ("http://example.com/a/./b/../c", "http://example.com/a/c"),
    ("http://example.com/../../a", "http://example.com/a"),
    ("http://example.com/a/..", "http://example.com/"),
    ("http://example.com/a/b/.", "http://example.com/a/b/"),
    ("http://example.com/a//b", "http://example.com/a//b"),
    ("http://example.com/.well-known/...", "http://example.com/.well-known/..."),
    ("http://example.com/..%2f..%2f", "http://example.com/..%2f..%2f"),
    ("http://example.com/?p=/../x", "http://example.com/?p=/../x"),
]

HOSTS = [
    ("a_b.example", "a_b.example"),
    ("r3---sn-4g5e.example", "r3---sn-4g5e.example"),
    ("trailing-.example", "trailing-.example"),
    ("-leading.example", "-leading.example"),
    ("_dmarc.Example.com", "_dmarc.example.com"),
    ("a._b.example", "a._b.example"),
    ("a_.example", "a_.example"),
    ("_", "_"),
    ("-", "-"),
    ("ab--cd.example", "ab--cd.example"),
    ("123.example", "123.example"),
    ("xn--i-7iq.ws", "xn--i-7iq.ws"),
    ("i❤.ws", "xn--i-7iq.ws"),
    ("☃.example", "xn--n3h.example"),
    ("xn--a.com", "xn--a.com"),
    ("XN--A.com", "xn--a.com"),
    ("xn--", "xn--"),
    ("www.xn--zzzzzzzz-.example", "www.xn--zzzzzzzz-.example"),
    ("_a.bücher.xn--a.example", "_a.xn--bcher-kva.xn--a.example"),
    (f"{'é' * 55}.example", f"xn--{('é' * 55).encode('punycode').decode()}.example"),
    ("1and1.example", "1and1.example"),
    ("0x7g.example", "0x7g.example"),
    ("1.2.3.4.example", "1.2.3.4.example"),
    ("localhost", "localhost"),
    ("localhost.", "localhost"),
    ("metadata.google.internal", "metadata.google.internal"),
    (f"{LABEL_63}.example", f"{LABEL_63}.example"),
    (HOST_253, HOST_253),
    (f"{HOST_253}.", HOST_253),
    ("bücher.example", "xn--bcher-kva.example"),
    ("BÜCHER.EXAMPLE", "xn--bcher-kva.example"),
    ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
    ("faß.example", "xn--fa-hia.example"),
    ("ΟΔΟΣ.example", "xn--pxavbq.example"),  # with a sigma that is not final, as UTS 46 maps it
    ("ⓔxample.com", "example.com"),
    ("ｅｘａｍｐｌｅ．ｃｏｍ", "example.com"),
    ("evil。example", "evil.example"),
    ("evil．example", "evil.example"),
    ("evil｡example｡", "evil.example"),
    ("8.8.8.8", "8.8.8.8"),
    ("8.8.8.8.", "8.8.8.8"),
    ("127.0.0.1", "127.0.0.1"),
    ("127。0。0。1", "127.0.0.1"),
    ("①②⑦.⓪.⓪.①", "127.0.0.1"),
    ("１２７．０．０．１", "127.0.0.1"),
    ("[::1]", "::1"),
    ("[0:0:0:0:0:0:0:1]", "::1"),
    ("[2001:DB8:0:0:1:0:0:1]", "2001:db8::1:0:0:1"),
    ("[::ffff:7f00:1]", "127.0.0.1"),
    ("[::FFFF:127.0.0.1]", "127.0.0.1"),
    ("[::127.0.0.1]", "::7f00:1"),
]

REFUSED_SCHEMES = [
    "",
    "example.com",
    "//example.com/",
    "http:example.com",
    "http:/example.com",
    "file:///etc/passwd",
    "gopher://example.com:70/_x",
    "ws://example.com/",
    "http+unix://%2ftmp%2fs/",
    "javascript:alert(1)",
    "data:,x",
    "httpſ://example.com/",
    "https//example.com",
]

REFUSED_USERINFO = [
    "http://ok@127.0.0.1",
    "http://ok@127.0.0.1/",
    "http://user:p%40ss@example.com/",
    "http://@example.com/",
    "http://:@example.com/",
    "http://127.0.0.1:80@example.com/",
    "http://a.example%2f@127.0.0.1/",
    "http://[::1]@example.com/",
]

REFUSED_CHARACTERS = [
    "http://example.com/\r\nX: y",
    "http://example.com/a\nb",
    "http://example.com/a\rb",
    "http://example.com/a\x00b",
    "http://a\x00b/",
    "http://example.com\t.b/",
    " http://example.com/",
    "http://example.com/ ",
    "http://exa mple.com/",
    "http://example.com/a b",
    "http://example.com/?a b",
    "http://example.com/#a\nb",
    "http://example.com/\x7f",
    "http://example.com/\x85",
    "http://example.com/\ud800",
    "http://evil\\@host/",
    "http://evil.example\\@127.0.0.1/",
    "http:\\\\example.com/",
    "http://example.com/a\\b",
]

REFUSED_HOSTS = [
    "http:///x",
    "http://",
    "http://:80/",
    "http://./",
    "http://../",
    "http://a..b/",
    "http://.example.com/",
    "http://example.com../",
    "http://。/",
    "http://\u00ad/",
    "http://%31%32%37.0.0.1/",
    "http://127.0.0.1%2f.example/",
    "http://a％b.example/",
    f"http://{LABEL_63}a.example/",
    f"http://{HOST_253}a/",
    f"http://{'é' * 64}.example/",
    "http://a\u200db.example/",
    "http://\u0301a.example/",
    "http://אa.example/",
    "http://xn--é.example/",
    "http://é=.example/",
    "http://\U0001fffe.example/",
    "http://ex*mple.com/",
    "http://a,b.example/",
    "http://$(id).example/",
]

REFUSED_IPV4 = [
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0X7F.0.0.1",
    "017700000001",
    "0177.0.0.1",
    "127.1",
    "127.0.1",
    "0",
    "0.",
    "00.0.0.0",
    "127.0.0.01",
    "256.0.0.1",
    "1.2.3.4.5",
    "1.2.3",
    "example.1",
    "example.0x",
    "example.0xff",
    "１２７．１",
    "①②⑦.①",
    "999999999999",
]

REFUSED_IPV6 = [
    "http://[::1",
    "http://::1/",
    "http://[]/",
    "http://[::1]x/",
    "http://x[::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fe80::1%eth0]/",
    "http://[::ffff:127.1]/",
    "http://[::ffff:0177.0.0.1]/",
    "http://[1.2.3.4]/",
    "http://[v1.a]/",
    "http://[12345::]/",
    "http://[::１]/",
    "http://[::1]:x/",
]

REFUSED_PORTS = ["0", "00000", "65536", "99999", "9" * 5000, "-1", "+80", "8O", "80:80", "٨٠", ":"]

ASCII_HOSTS = st.builds(
    "{}.{}".format,
    st.lists(
        st.from_regex(r"[A-Za-z0-9_-]{1,20}|[Xx][Nn]--[A-Za-z0-9-]{0,20}", fullmatch=True),
        min_size=1,
        max_size=9,
    ).map(".".join),
    st.from_regex(r"[A-Za-z_-][A-Wa-w_-]{0,20}", fullmatch=True),
)
URLISH = st.from_regex(
    r"(?i)https?://[\w\-.:\[\]@%。①ßé]{0,20}[/?#]?[\w/.%?&=#\\ \[\]<>é€]{0,20}", fullmatch=True
)
LABELS = st.from_regex(r"[a-z0-9é]([a-z0-9_ü-]{0,10}[a-z0-9])?", fullmatch=True)
GOOD_URLS = st.builds(
    "{}://{}.example{}/{}".format,
    st.sampled_from(["http", "https", "HTTP"]),
    st.from_regex(r"[a-zA-Z]([a-z0-9_]{0,10}[a-z0-9])?", fullmatch=True),
    st.sampled_from(["", ":80", ":443", ":8080"]),
    st.from_regex(r"[a-z./%é?&={}\[\]|~]{0,30}", fullmatch=True),
)


def parsed(text: str) -> FetchUrl | None:
    try:
        return parse_url(text)
    except UrlError:
        return None


def refusal_of(text: str) -> str:
    with pytest.raises(UrlError) as caught:
        parse_url(text)
    return str(caught.value)


@pytest.mark.parametrize(("text", "canonical"), CANONICAL)
def test_every_spelling_of_a_url_has_one_canonical_text(text: str, canonical: str) -> None:
    """Case, default ports, fragments, dots and unsafe characters."""
    assert parse_url(text).text == canonical


@pytest.mark.parametrize(("text", "host"), HOSTS)
def test_every_spelling_of_a_host_has_one_canonical_host(text: str, host: str) -> None:
    """Upper case, Unicode, the dot of the root and IPv6 zeros."""
    assert parse_url(f"http://{text}/").host == host


@pytest.mark.parametrize(("text", "host"), [*HOSTS, ("::1", "::1"), ("2001:DB8::0", "2001:db8::")])
def test_a_host_alone_has_the_form_that_it_has_in_a_url(text: str, host: str) -> None:
    """Policy tables and commands name hosts. An IPv6 address needs no brackets there."""
    assert parse_host(text) == host


@pytest.mark.parametrize(
    "text",
    ["", ".", "a b", "a/b", "a?", "a#b", "u@h", "a\n", "h:80", "http://h/", "*.a", "2130706433", "é/x"],
)
def test_text_that_is_more_than_a_host_is_refused(text: str) -> None:
    """A port, a path or a pattern is not part of a host."""
    with pytest.raises(UrlError):
        parse_host(text)


@given(ASCII_HOSTS)
def test_an_ascii_host_follows_the_rules_of_dns(host: str) -> None:
    """It holds with any first and last characters of its labels, and with any A-label."""
    assert parse_url(f"http://{host}:/").text == f"http://{host.lower()}/"
    assert parse_host(host) == host.lower()


def test_a_url_has_scheme_host_and_port() -> None:
    """The port is filled in, and an origin always has it."""
    url = parse_url("HTTPS://Example.com/a")

    assert url == FetchUrl("https://example.com/a", "https", "example.com", 443)
    assert url.origin_with_port == "https://example.com:443"


def test_an_ipv6_host_has_brackets_in_text_and_origin_only() -> None:
    """Sockets need the bare address, requests the brackets."""
    url = parse_url("http://[0::1]:8080/x")

    assert url == FetchUrl("http://[::1]:8080/x", "http", "::1", 8080)
    assert url.origin_with_port == "http://[::1]:8080"


@pytest.mark.parametrize("text", REFUSED_SCHEMES)
def test_only_http_and_https_are_fetched(text: str) -> None:
    """Another scheme, a relative URL and empty text are refused, with the valid form."""
    assert "write http://host/path" in refusal_of(text)


@pytest.mark.parametrize("text", REFUSED_USERINFO)
def test_a_user_or_password_before_the_host_is_refused(text: str) -> None:
    """Userinfo disguises hosts (`http://good@evil`), and is a secret in a log."""
    assert "Authorization header" in refusal_of(text)


@pytest.mark.parametrize("text", REFUSED_CHARACTERS)
def test_controls_spaces_and_backslashes_are_refused_anywhere(text: str) -> None:
    """They could end a header line, or count as a slash elsewhere."""
    assert "percent-encode or remove it" in refusal_of(text)


@pytest.mark.parametrize("text", REFUSED_HOSTS)
def test_a_host_that_is_not_a_dns_name_is_refused(text: str) -> None:
    """Empty, overlong, percent-encoded and invalid punycode hosts do not reach a resolver."""
    assert "host" in refusal_of(text)


@pytest.mark.parametrize("host", REFUSED_IPV4)
def test_a_host_that_ends_in_a_number_is_canonical_ipv4_or_refused(host: str) -> None:
    """Decimal, octal, hex and short forms mean loopback to some resolvers."""
    assert "dotted decimal" in refusal_of(f"http://{host}/")


@pytest.mark.parametrize("text", REFUSED_IPV6)
def test_a_malformed_ipv6_host_is_refused(text: str) -> None:
    """Brackets contain one plain IPv6 address without a zone ID."""
    refusal_of(text)


@pytest.mark.parametrize("port", REFUSED_PORTS)
def test_a_port_is_1_to_65535_in_ascii_digits(port: str) -> None:
    """Zero, larger numbers, signs and other digits are refused."""
    assert "port" in refusal_of(f"http://example.com:{port}/")


def test_a_url_may_be_8192_bytes_long_and_no_longer() -> None:
    """The limit applies to the given text and to the canonical one."""
    longest = "http://a/" + "x" * (MAX_URL_BYTES - len("http://a/"))

    assert len(parse_url(longest).text) == MAX_URL_BYTES
    assert "longer than 8192" in refusal_of(longest + "x")
    assert "longer than 8192" in refusal_of("http://a/" + "é" * 2000)
    assert "longer than 8192" in refusal_of("http://a/#" + "x" * MAX_URL_BYTES)


def test_a_refusal_quotes_no_secret() -> None:
    """Messages go to logs, without userinfo and query."""
    messages = [
        refusal_of("http://bob:hunter2@example.com/"),
        refusal_of("http://example.com:x/?token=hunter2"),
        refusal_of("http://example.com/?token=hunter2 "),
    ]

    assert not any("hunter2" in message for message in messages)


def test_a_refusal_shows_a_hostile_host_short_and_escaped() -> None:
    """A terminal gets neither controls nor kilobytes."""
    message = refusal_of("http://\u202e" + "é" * 4000 + "/")

    assert len(message) < 1000
    assert message.isascii()


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("http://example.com/a", "http://EXAMPLE.com:80/b?c", True),
        ("http://[::1]/", "http://[0::1]:80/", True),
        ("http://example.com/", "https://example.com/", False),
        ("http://example.com/", "http://example.com:8080/", False),
        ("http://example.com/", "http://www.example.com/", False),
        ("http://example.com:443/", "https://example.com/", False),
    ],
)
def test_an_origin_is_scheme_host_and_port(a: str, b: str, *, same: bool) -> None:
    """Each of the three matters, path and query do not (RFC 6454 §5)."""
    assert same_origin(parse_url(a), parse_url(b)) is same


def test_a_lane_is_the_host_for_every_scheme_and_port() -> None:
    """Otherwise the limits of a host would apply to each port."""
    lanes = {
        lane_of_url(parse_url(text).text)
        for text in ("http://Example.com/", "https://example.com.:8443/x", "http://ｅxample.com")
    }

    assert lanes == {"example.com"}


@given(st.one_of(st.text(), URLISH, st.text().map("http://{}".format)))
@example("http://[::1%\ud800]/")
@example("http://xn--\x80/")
def test_arbitrary_text_is_parsed_to_ascii_or_refused_with_a_url_error(text: str) -> None:
    """No input raises another exception, or reaches a socket as other than ASCII."""
    url = parsed(text)

    assert url is None or url.text.isascii()


@given(st.one_of(GOOD_URLS, URLISH, LABELS.map("http://{}.example/".format)))
def test_parsing_a_canonical_text_again_changes_nothing(text: str) -> None:
    """A URL can be sent as text and parsed by the receiver."""
    url = parsed(text)

    assert url is None or parse_url(url.text) == url


@given(st.one_of(GOOD_URLS, URLISH, GOOD_URLS.map(lambda text: parse_url(text).text)))
@example("http://a.example/a/./b")
@example("http://a.example/a?x=/./")
@example("http://a.example:80/")
@example("https://a.example:080/")
@example("http://a.example./")
@example("http://1.2.3.4.5/")
@example("http://-/")
@example("http://a.example/\n")
@example("http://a.example/" + "a" * MAX_URL_BYTES)
def test_the_quick_path_to_a_canonical_url_gives_the_same_result(text: str) -> None:
    """The text, or the refusal."""
    found: list[str] = []
    for parse in (canonical_url, lambda text: parse_url(text).text):
        try:
            found.append(parse(text))
        except UrlError as error:
            found.append(repr(error))
    assert found[0] == found[1]


@given(GOOD_URLS)
def test_a_good_url_is_never_refused(text: str) -> None:
    """The other properties would hold for a parser that refuses everything."""
    assert parsed(text)


@given(st.one_of(GOOD_URLS, URLISH))
@example("http://example.com?@evil.example")
@example("http://[::ffff:7f00:1]/a/%2e%2e/b")
def test_httpx_and_urllib_read_the_same_url(text: str) -> None:
    """A later parser that found another host would defeat every check."""
    url = parsed(text)
    if url is None:
        return

    by_httpx = httpx.URL(url.text)
    assert by_httpx.raw_host.decode() == urlsplit(url.text).hostname == url.host
    assert by_httpx.port in {url.port, None}
    assert by_httpx.userinfo == b""
    assert url.text.endswith(by_httpx.raw_path.decode())


def spellings(address: IPv4Address) -> list[str]:
    """Return ways to write an IPv4 address as a host; some are refused."""
    number, dotted = int(address), str(address)
    a, b, c, d = address.packed
    high, low = number >> 16, number & 0xFFFF
    full_width = dotted.translate({ord("0") + n: ord("０") + n for n in range(10)})
    mapped = [f"::ffff:{dotted}", f"::FFFF:{high:x}:{low:x}", f"0:0:0:0:0:ffff:{high:04x}:{low:04X}"]
    mapped += [f"0000::ffff:{dotted}", f"::0:ffff:{dotted}", f"::ffff:{dotted}%1", f"::ffff:{dotted}%25lo"]
    return [
        *(dotted, f"{dotted}.", f"{dotted}..", f"{dotted}:", full_width, dotted.replace(".", "。")),
        *(dotted.replace(".", "．"), dotted.replace(".", "｡"), dotted.replace(".", "%2e"), f" {dotted}"),
        *(str(number), hex(number), f"0{number:o}", f"{a}.{number & 0xFFFFFF}", f"{a}.{b}.{low}"),
        *(f"0x{a:x}.{b}.{c}.{d}", f"{a:#o}.{b}.{c}.{d}", f"0{a}.{b}.{c}.{d:03}", f"{dotted}\u00ad"),
        *(f"[{text}]" for text in mapped),
    ]


DECIMAL_PARTS = st.integers(0, 300).map(str) | st.from_regex("[0-9]{1,4}", fullmatch=True)


@given(st.lists(DECIMAL_PARTS, min_size=1, max_size=5).map(".".join))
@example("255.255.255.255")
@example("256.0.0.1")
@example("01.2.3.4")
def test_decimal_hosts_are_accepted_as_by_ipaddress(text: str) -> None:
    """A host that another parser reads as another address must be refused."""
    try:
        expected = str(IPv4Address(text))
    except ValueError:
        expected = None

    try:
        host = parse_url(f"http://{text}/").host
    except UrlError:
        host = None

    assert expected == host


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
@example(IPv4Address("127.0.0.1"))
def test_every_spelling_of_an_address_is_one_host_or_refused(address: IPv4Address) -> None:
    """A second name for a host would be a second lane, with its own concurrency."""
    base = parse_url("http://a.example/")
    hosts = set[str]()
    for host in spellings(address):
        for read in (parse_host, lambda text: parse_url(f"http://{text}/").host):
            with suppress(UrlError):
                hosts.add(read(host))
        with suppress(UrlError, UnicodeEncodeError):
            hosts.add(target_of(base, f"//{host.encode().decode('latin-1')}/x").host)
        with suppress(PolicyError):
            hosts.add(host_named(host))

    assert hosts == {str(address)}


@given(st.one_of(st.integers(0, 2**128 - 1), st.integers(0xFFFF << 32, (1 << 48) - 1)).map(IPv6Address))
def test_every_spelling_of_an_ipv6_address_is_one_host(address: IPv6Address) -> None:
    """It holds with any zeros. A mapped address is its IPv4 address."""
    texts = [str(address), address.exploded, ":".join(f"{part:x}" for part in unpack(">8H", address.packed))]
    texts.append(f"{address.exploded[:30]}{IPv4Address(int(address) & 0xFFFFFFFF)}")
    hosts = {parse_host(text) for text in [*texts, *map(str.upper, texts)]}

    assert hosts == {str(address.ipv4_mapped or address)}
    assert {lane_of_name(text) for text in [*texts, *hosts]} == hosts


def test_the_lane_of_an_invalid_host_is_its_name() -> None:
    """Redis may have a lane of any name."""
    assert [lane_of_name(name) for name in ("", "a b", "\x9b", "::1::")] == ["", "a b", "\x9b", "::1::"]
