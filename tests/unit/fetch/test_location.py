"""The target of a redirect, as browsers read a Location."""

from contextlib import suppress
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.jobs.contract.urls import MAX_URL_BYTES, UrlError, parse_url
from fetchfleet.worker.fetch.rules.redirects import target_of

# RFC 3986 §5.4.1 and §5.4.2, base http://a/b/c/d;p?q, fragments dropped and an empty path made "/".
RFC_3986_REFERENCES = [
    ("g", "http://a/b/c/g"),
    ("./g", "http://a/b/c/g"),
    ("g/", "http://a/b/c/g/"),
    ("/g", "http://a/g"),
    ("//g", "http://g/"),
    ("?y", "http://a/b/c/d;p?y"),
    ("g?y", "http://a/b/c/g?y"),
    ("#s", "http://a/b/c/d;p?q"),
    ("g#s", "http://a/b/c/g"),
    ("g?y#s", "http://a/b/c/g?y"),
    (";x", "http://a/b/c/;x"),
    ("g;x", "http://a/b/c/g;x"),
    ("g;x?y#s", "http://a/b/c/g;x?y"),
    (".", "http://a/b/c/"),
    ("./", "http://a/b/c/"),
    ("..", "http://a/b/"),
    ("../", "http://a/b/"),
    ("../g", "http://a/b/g"),
    ("../..", "http://a/"),
    ("../../", "http://a/"),
    ("../../g", "http://a/g"),
    ("../../../g", "http://a/g"),
    ("../../../../g", "http://a/g"),
    ("/./g", "http://a/g"),
    ("/../g", "http://a/g"),
    ("g.", "http://a/b/c/g."),
    (".g", "http://a/b/c/.g"),
    ("g..", "http://a/b/c/g.."),
    ("..g", "http://a/b/c/..g"),
    ("./../g", "http://a/b/g"),
    ("./g/.", "http://a/b/c/g/"),
    ("g/./h", "http://a/b/c/g/h"),
    ("g/../h", "http://a/b/c/h"),
    ("g;x=1/./y", "http://a/b/c/g;x=1/y"),
    ("g;x=1/../y", "http://a/b/c/y"),
    ("g?y/./x", "http://a/b/c/g?y/./x"),
    ("g?y/../x", "http://a/b/c/g?y/../x"),
    ("g#s/../x", "http://a/b/c/g"),
]

HERE = "http://h.example/dir/page?q"

AS_BROWSERS = {
    "a tab and line ends": ("/ok/a\tb\r\nc", "http://h.example/ok/abc"),
    "a tab in the scheme and the host": ("ht\ttp://o\tther.example/x", "http://other.example/x"),
    "spaces and controls around it": (" \x01\t/x \x00", "http://h.example/x"),
    "spaces inside": ("/a b?c d", "http://h.example/a%20b?c%20d"),
    "controls inside": ("/a\x01\x7fb", "http://h.example/a%01%7Fb"),
    "characters that no URL has": ('/"<>^`{|}', "http://h.example/%22%3C%3E%5E%60%7B%7C%7D"),
    "a Latin-1 byte": ("/caf\xe9?\xe9", "http://h.example/caf%E9?%E9"),
    "bytes of UTF-8": ("/\xd8\xa7", "http://h.example/%D8%A7"),
    "bytes that are no text": ("/\xff\x80\xa0", "http://h.example/%FF%80%A0"),
    "escapes": ("/caf%e9%2F%25", "http://h.example/caf%e9%2F%25"),
    "backslashes in the path": ("\\a\\..\\b?c\\d", "http://h.example/b?c%5Cd"),
    "backslashes before a host": ("\\\\other.example\\x", "http://other.example/x"),
    "a slash and a backslash": ("/\\other.example", "http://other.example/"),
    "backslashes after the scheme": ("http:\\\\other.example\\x", "http://other.example/x"),
    "a backslash that ends the host": (
        "http://other.example\\@evil.example/",
        "http://other.example/@evil.example/",
    ),
    "a host without a scheme": ("//other.example/x", "http://other.example/x"),
    "too many slashes": ("http:////other.example/x", "http://other.example/x"),
    "too many slashes, no scheme": ("///other.example/x", "http://other.example/x"),
    "the same scheme, no host": ("http:/x", "http://h.example/x"),
    "the same scheme and a path": ("http:x", "http://h.example/dir/x"),
    "the same scheme and a query": ("HTTP:?x", "http://h.example/dir/page?x"),
    "another scheme, one slash": ("https:/other.example/x", "https://other.example/x"),
    "another scheme, no slash": ("https:other.example", "https://other.example/"),
    "a scheme in capitals": ("HTTPS://Other.Example/X", "https://other.example/X"),
    "a query alone": ("?x=/..", "http://h.example/dir/page?x=/.."),
    "a fragment": ("/x#frag?ment", "http://h.example/x"),
    "a fragment alone": ("#frag", HERE),
    "a relative path": ("x/../y", "http://h.example/dir/y"),
    "a colon in a path": ("./a:b", "http://h.example/dir/a:b"),
    "a port": ("//other.example:8080", "http://other.example:8080/"),
    "an empty port": ("https://other.example:/x", "https://other.example/x"),
    "an empty port after an address": ("http://127.0.0.1:?x", "http://127.0.0.1/?x"),
    "an empty port without a scheme": ("//[::1]:", "http://[::1]/"),
    "the default port": ("https://other.example:443/", "https://other.example/"),
    "a host in UTF-8": ("//b\xc3\xbccher.example/\xc3\xbc", "http://xn--bcher-kva.example/%C3%BC"),
    "a host in escapes": ("//b%C3%BCch%65r.example/", "http://xn--bcher-kva.example/"),
    "dot segments in escapes": ("/a/%2e%2E/.%2e/b/%2e?%2e", "http://h.example/b/?%2e"),
    "a relative path in escapes": ("%2E%2e/b", "http://h.example/b"),
    "dots in escapes that are no segment": (
        "/a%2e%2e/%2e%2e%2e/%2ea",
        "http://h.example/a%2e%2e/%2e%2e%2e/%2ea",
    ),
    "an address": ("//[2606:4700::1111]:8080/x", "http://[2606:4700::1111]:8080/x"),
}

REFUSED = [
    "",
    " \t ",
    "g:h",
    "localhost:8080/x",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "//",
    "http://",
    "https:",
    "//user@example.com/",
    "//user:secret@example.com/",
    "//2130706433/",
    "//127.1/",
    "http://example.com:0/",
    "http://example.com:99999/",
    "http://exa mple.com/",
    "http://b\xfccher.example/",
    "http://a%2Fb.example/",
    "http://a%40b.example/",
    "http://a%3A80/",
    "http://a%00b.example/",
    "http://[::1%25lo]/",
    "/" + "x" * MAX_URL_BYTES,
    "/" + "\xe9" * (MAX_URL_BYTES // 2),
]


@pytest.mark.parametrize(("location", "target"), RFC_3986_REFERENCES)
def test_a_relative_location_resolves_by_rfc_3986(location: str, target: str) -> None:
    """The cases are the examples of RFC 3986 §5.4 that name an http URL."""
    assert target_of(parse_url("http://a/b/c/d;p?q"), location).text == target


@pytest.mark.parametrize(("location", "target"), AS_BROWSERS.values(), ids=AS_BROWSERS.keys())
def test_a_location_is_read_as_browsers_read_it(location: str, target: str) -> None:
    """The parser follows the URL standard of the WHATWG, with the same escapes."""
    assert target_of(parse_url(HERE), location).text == target


def test_a_location_keeps_the_port_unless_it_names_a_host() -> None:
    """A path stays within the origin."""
    base = parse_url("https://[::1]:8443/a/b?c")

    assert target_of(base, "/x").text == "https://[::1]:8443/x"
    assert target_of(base, "x").text == "https://[::1]:8443/a/x"
    assert target_of(base, "//example.com/x").text == "https://example.com/x"
    assert target_of(base, "http:/example.com").text == "http://example.com/"


@pytest.mark.parametrize("location", REFUSED)
def test_a_location_that_leads_to_no_http_url_is_refused(location: str) -> None:
    """The parser raises a UrlError that quotes no secret."""
    with pytest.raises(UrlError) as caught:
        target_of(parse_url("http://example.com/a/b"), location)

    assert "secret" not in str(caught.value)


BYTES = st.binary(max_size=40).map(lambda value: value.decode("latin-1"))
PARTS = st.sampled_from(
    [
        "http:",
        "https:",
        "/",
        "\\",
        "//",
        "?",
        "#",
        "@",
        ":",
        ":80",
        "%",
        "%2f",
        "..",
        "a.example",
        "[::1]",
        "\xe9",
        " ",
    ]
)


@given(
    st.sampled_from([HERE, "https://[::1]:8443/a/b?c", "http://a/"]),
    st.one_of(BYTES, st.lists(PARTS, max_size=8).map("".join)),
)
def test_any_bytes_are_a_canonical_url_or_a_url_error(base: str, location: str) -> None:
    """A host can neither raise another error nor lead to a URL that a producer could not submit."""
    with suppress(UrlError):
        target = target_of(parse_url(base), location)

        assert parse_url(target.text) == target


@given(st.binary(max_size=100))
def test_bytes_of_a_query_arrive_as_they_were_sent(value: bytes) -> None:
    """The host gets the same bytes after it decodes the escapes, in any text encoding."""
    sent = bytes(byte for byte in value if byte not in b"\t\n\r#%")
    location = "/x?" + sent.decode("latin-1") + "."

    query = target_of(parse_url(HERE), location).text.partition("?")[2]

    assert unquote_to_bytes(query) == sent + b"."
