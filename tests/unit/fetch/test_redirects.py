"""Redirects: their targets, the request that is sent there, and refusals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.jobs.contract.entry import MAX_HOPS, Hop
from fetchfleet.jobs.contract.urls import parse_url, same_origin
from fetchfleet.worker.fetch.rules.redirects import (
    CROSS_ORIGIN_HEADERS,
    AllowedRedirects,
    Headers,
    RedirectRefused,
    follow,
    is_redirect,
)

HERE = "https://example.com/a/b?token=hunter2"
SAME = "https://example.com/next"
OTHER = "https://other.example/next"

SECRETS: Headers = (
    ("Authorization", "Bearer s3cret"),
    ("Cookie", "sid=s3cret"),
    ("Proxy-Authorization", "Basic s3cret"),
    ("X-Api-Key", "s3cret"),
    ("X-Auth-Token", "s3cret"),
    ("Referer", "https://example.com/?s3cret"),
)
HARMLESS: Headers = (
    ("Accept", "*/*"),
    ("accept-language", "en"),
    ("ACCEPT-ENCODING", "identity"),
    ("User-Agent", "fetchfleet"),
    ("Range", "bytes=5-"),
    ("If-Range", '"v1"'),
)
BODY_HEADERS: Headers = (
    ("Content-Type", "application/json"),
    ("content-encoding", "gzip"),
    ("Content-Language", "en"),
    ("Digest", "sha-256=x"),
    ("Repr-Digest", "sha-256=:x:"),
)

STATUSES = st.sampled_from([301, 302, 303, 307, 308])
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
LOCATIONS = st.one_of(
    st.none(),
    st.text(st.characters(max_codepoint=0xFF)),
    st.sampled_from([SAME, OTHER, "/x", "//h.example", "http://example.com", "file:///x"]),
)


def redirected(
    method: str,
    status: int,
    location: str | None,
    *,
    start: str = HERE,
    headers: Headers = (),
    body: str | None = None,
    repeat_safe: bool = False,
    bodies: bool = False,
) -> Hop | RedirectRefused:
    request = Hop(method, parse_url(start).text, headers, body)
    return follow(request, status, location, AllowedRedirects(repeat=repeat_safe, bodies=bodies))


def refusal_of(verdict: Hop | RedirectRefused) -> str:
    assert isinstance(verdict, RedirectRefused)
    return verdict.message


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_five_statuses_are_redirects(status: int) -> None:
    """They name one target."""
    assert is_redirect(status)


@pytest.mark.parametrize("status", [200, 299, 300, 304, 305, 306, 309, 399, 400])
def test_no_other_status_is_a_redirect(status: int) -> None:
    """A 300 offers a choice and a 304 is a response, so the worker follows neither."""
    assert not is_redirect(status)


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [
        (301, "GET", "GET"),
        (301, "HEAD", "HEAD"),
        (301, "POST", "GET"),
        (301, "PUT", "PUT"),
        (301, "DELETE", "DELETE"),
        (302, "GET", "GET"),
        (302, "HEAD", "HEAD"),
        (302, "POST", "GET"),
        (302, "PATCH", "PATCH"),
        (303, "GET", "GET"),
        (303, "HEAD", "HEAD"),
        (303, "POST", "GET"),
        (303, "PUT", "GET"),
        (303, "DELETE", "GET"),
        (307, "GET", "GET"),
        (307, "HEAD", "HEAD"),
        (307, "POST", "POST"),
        (307, "PUT", "PUT"),
        (308, "GET", "GET"),
        (308, "POST", "POST"),
        (308, "PATCH", "PATCH"),
    ],
)
def test_the_next_method_is_the_one_rfc_9110_names(status: int, method: str, then: str) -> None:
    """RFC 9110 §15.4.2 to §15.4.9, row by row."""
    assert redirected(method, status, SAME, repeat_safe=True) == Hop(then, SAME, (), None)


@pytest.mark.parametrize("status", [301, 302, 303])
@pytest.mark.parametrize("location", [SAME, OTHER])
def test_a_post_that_becomes_a_get_drops_its_body(status: int, location: str) -> None:
    """The next request also drops every header that described the body."""
    hop = redirected("POST", status, location, headers=BODY_HEADERS, body="{}")

    assert hop == Hop("GET", location, (), None)


@pytest.mark.parametrize("status", [307, 308])
def test_a_body_is_sent_again_to_its_own_origin(status: int) -> None:
    """307 and 308 request the same again, and the same host may have the same body."""
    hop = redirected("PUT", status, SAME, headers=BODY_HEADERS + SECRETS, body="{}")

    assert hop == Hop("PUT", SAME, BODY_HEADERS + SECRETS, "{}")


@pytest.mark.parametrize(("status", "method"), [(301, "PUT"), (302, "PATCH"), (307, "POST"), (308, "PUT")])
@pytest.mark.parametrize("location", [OTHER, "https://example.com:8443/", "//www.example.com/"])
def test_a_body_is_not_sent_to_another_origin(status: int, method: str, location: str) -> None:
    """The worker refuses the redirect even if the caller allows repeats."""
    verdict = redirected(method, status, location, body="secret", repeat_safe=True)

    assert "body" in refusal_of(verdict)


@pytest.mark.parametrize(
    "body", [{"body_base64": "YQ=="}, {"body_file": "a"}], ids=lambda body: next(iter(body))
)
def test_every_source_of_a_body_is_treated_alike(body: dict[str, str]) -> None:
    """Bytes and files are kept, dropped and refused as text is."""
    put, post = (Hop(method, HERE, BODY_HEADERS, **body) for method in ("PUT", "POST"))

    assert Hop("PUT", SAME, BODY_HEADERS, **body) == follow(put, 307, SAME, AllowedRedirects())
    assert Hop("POST", SAME, BODY_HEADERS, **body) == follow(post, 308, SAME, AllowedRedirects())
    assert Hop("GET", SAME) == follow(post, 303, SAME, AllowedRedirects())
    assert "body" in refusal_of(follow(put, 307, OTHER, AllowedRedirects(repeat=True)))


@pytest.mark.parametrize("status", [301, 302])
def test_a_method_that_is_not_idempotent_is_repeated_only_on_request(status: int) -> None:
    """After 301 and 302 the host may have processed the request. Only the caller may allow a repeat."""
    assert "twice" in refusal_of(redirected("PATCH", status, SAME, body="{}"))
    assert "twice" in refusal_of(redirected("PATCH", status, OTHER, body="{}", bodies=True))
    assert redirected("PATCH", status, SAME, body="{}", repeat_safe=True) == Hop("PATCH", SAME, (), "{}")


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize("body", ["{}", None])
def test_a_307_or_308_repeats_any_method_in_its_origin(status: int, method: str, body: str | None) -> None:
    """The host has not processed the request."""
    hop = redirected(method, status, "/next", headers=BODY_HEADERS + SECRETS, body=body)

    assert hop == Hop(method, SAME, BODY_HEADERS + SECRETS, body)


@pytest.mark.parametrize("location", [SAME, "https://example.com:8443/"])
@pytest.mark.parametrize(("method", "status"), [("POST", 307), ("POST", 308), ("PUT", 301), ("PUT", 307)])
def test_a_body_follows_its_host_from_http_to_https(method: str, status: int, location: str) -> None:
    """The request keeps body headers and its idempotency key, drops secrets, and never returns to http."""
    key = (("Idempotency-Key", "k"),)
    start = "http://example.com/a/b"

    hop = redirected(method, status, location, start=start, headers=BODY_HEADERS + key + SECRETS, body="{}")

    assert hop == Hop(method, parse_url(location).text, BODY_HEADERS + key, "{}")
    back = redirected(method, status, start, start=SAME, body="{}", bodies=True)
    assert "https to http" in refusal_of(back)


@pytest.mark.parametrize("body", ["{}", None])
def test_another_origin_gets_the_whole_request_only_by_policy(body: str | None) -> None:
    """It holds with and without a body."""
    assert "redirect_bodies" in refusal_of(redirected("POST", 307, OTHER, body=body))

    hop = redirected("POST", 307, OTHER, headers=BODY_HEADERS + SECRETS, body=body, bodies=True)

    assert hop == Hop("POST", OTHER, BODY_HEADERS, body)


def test_every_header_is_kept_within_an_origin() -> None:
    """The host has seen them already."""
    hop = redirected("GET", 302, "/next", headers=SECRETS + HARMLESS)

    assert hop == Hop("GET", SAME, SECRETS + HARMLESS, None)


@pytest.mark.parametrize(
    ("start", "location"),
    [
        (HERE, OTHER),
        (HERE, "https://www.example.com/"),
        (HERE, "https://example.com:8443/"),
        (HERE, "//[2606:4700::1111]/"),
        ("http://example.com/", "https://example.com/"),
    ],
)
def test_only_harmless_headers_are_sent_to_another_origin(start: str, location: str) -> None:
    """An allow-list selects the headers, so that a secret under any other name is dropped too."""
    hop = redirected("GET", 302, location, start=start, headers=SECRETS + HARMLESS)

    assert isinstance(hop, Hop)
    assert hop.headers == HARMLESS


@pytest.mark.parametrize("location", ["http://example.com/", "http://other.example/"])
def test_https_is_not_redirected_to_http(location: str) -> None:
    """An attacker on the network could read and change the next request, to any host."""
    assert "https to http" in refusal_of(redirected("GET", 301, location))


@pytest.mark.parametrize(
    "location",
    [
        None,
        "",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "gopher://example.com/",
        "https://",
        "https://user@example.com/",
        "https://example.com:0/",
        "https://example.com:99999/",
        "https://2130706433/",
        "/" + "x" * 100_000,
    ],
)
def test_a_location_that_is_not_an_http_url_is_refused(location: str | None) -> None:
    """Missing, malformed, oversized and foreign schemes end the fetch with a message."""
    assert refusal_of(redirected("GET", 302, location)).startswith("302 ")


def test_a_private_address_is_left_to_the_egress_rule() -> None:
    """Its address is checked when it is dialled."""
    hop = redirected("GET", 302, "https://169.254.169.254/latest")

    assert hop == Hop("GET", "https://169.254.169.254/latest", (), None)


def test_a_refusal_quotes_no_secret() -> None:
    """Messages go to logs and results. Tokens of paths and queries stay out of them."""
    verdicts = [
        redirected("GET", 302, "http://example.com/?token=hunter2"),
        redirected("PUT", 307, "https://other.example/?token=hunter2", body="hunter2"),
        redirected("GET", 302, "https://bob:hunter2@example.com/"),
        redirected("PATCH", 302, "/hunter2", body="hunter2"),
        redirected("POST", 307, "https://other.example/hunter2"),
    ]

    assert not any("hunter2" in refusal_of(verdict) for verdict in verdicts)


def test_the_limit_is_ten_hops() -> None:
    """The caller counts them."""
    assert MAX_HOPS == 10


def test_a_status_that_is_not_a_redirect_raises() -> None:
    """It is an error of the calling code."""
    with pytest.raises(AssertionError, match="304"):
        redirected("GET", 304, SAME)


@given(method=METHODS, status=STATUSES, location=LOCATIONS, repeat_safe=st.booleans())
def test_any_location_yields_a_hop_or_a_refusal(
    method: str, status: int, location: str | None, *, repeat_safe: bool
) -> None:
    """A hostile server raises no exception in a worker."""
    verdict = redirected(method, status, location, body="b", repeat_safe=repeat_safe)

    assert isinstance(verdict, Hop | RedirectRefused)


@given(
    METHODS,
    STATUSES,
    LOCATIONS,
    st.lists(st.tuples(st.from_regex(r"[A-Za-z-]{1,12}", fullmatch=True), st.text())),
)
def test_another_origin_gets_no_body_and_no_unlisted_header(
    method: str, status: int, location: str | None, extra: list[tuple[str, str]]
) -> None:
    """It holds for any redirect and any header names."""
    headers = (*SECRETS, *HARMLESS, *extra)
    hop = redirected(method, status, location, headers=headers, body="b", repeat_safe=True)
    if not isinstance(hop, Hop) or same_origin(parse_url(hop.url), parse_url(HERE)):
        return

    assert hop.body is None
    assert {name.lower() for name, _ in hop.headers} <= CROSS_ORIGIN_HEADERS


@given(METHODS, STATUSES, LOCATIONS)
def test_every_hop_is_a_valid_fetch_url(method: str, status: int, location: str | None) -> None:
    """It passes the checks of a submitted URL, and does not fall back to http."""
    hop = redirected(method, status, location, repeat_safe=True)
    if isinstance(hop, Hop):
        assert parse_url(hop.url).text == hop.url
        assert parse_url(hop.url).scheme == "https"
