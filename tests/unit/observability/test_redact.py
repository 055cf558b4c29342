"""The parts of URLs and errors that a log may show."""

import json
import re
import time
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fetchfleet import Fetch
from fetchfleet.worker.observability import redact

URLS = [
    ("http://example.com/a/b", "http://example.com/a/b"),
    ("https://example.com:8443/", "https://example.com:8443/"),
    ("http://[::1]:80/", "http://[::1]:80/"),
    ("http://example.com/a;b=c:d/%20'(x)',http://b/", "http://example.com/a;b=c:d/%20'(x)',http://b/"),
    ("http://example.com:80/a?", "http://example.com:80/a"),
    ("http://example.com/a\n", "http://example.com/a"),
    ("http://ex\u00e4mple.com/\u00e4", "http://ex\u00e4mple.com/\u00e4"),
    ("http://user:hunter2@example.com/", "http://example.com/"),
    ("http://hunter2@example.com/", "http://example.com/"),
    ("http://a:b@hunter2@example.com/", "http://example.com/"),
    ("http://u:hunter 2@example.com/", "http://example.com/"),
    ("http://example.com/@handle", "http://example.com/@handle"),
    ("http://example.com/?token=hunter2", "http://example.com/?token=***"),
    ("http://example.com/?a=1&token=hunter2&b=", "http://example.com/?a=***&token=***&b=***"),
    ("http://example.com/?hunter2", "http://example.com/?***"),
    ("http://example.com/?a&hunter2=x=y", "http://example.com/?***&hunter2=***"),
    ("http://example.com/?a=hunter2=b", "http://example.com/?a=***"),
    ("http://example.com/#hunter2", "http://example.com/"),
    ("http://example.com/,http://u:hunter2@b/", "http://example.com/,http://b/"),
    ("redis://:hunter2@localhost:6379/0", "redis://localhost:6379/0"),
    ("rediss://user:hunter2@h/0", "rediss://h/0"),
    ("unix://user:hunter2@/run/redis.sock?db=1", "unix:///run/redis.sock?db=***"),
    ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ("redis://h/0?password=hunter2", "redis://h/0?password=***"),
    ("redis://:hunter2/x@h", "(unreadable URL)"),
    ("redis://:hunter2#x@h", "(unreadable URL)"),
    ("redis://:hunter2?x@h", "(unreadable URL)"),
    ("http://[hunter2/", "(unreadable URL)"),
    ("http://example.com/\x1b[31m", "http://example.com/\\u001b[31m"),
    ("http://example.com/\u202egpj", "http://example.com/\\u202egpj"),
    ("", "://"),
]

TEXTS = [
    ("nothing to hide", "nothing to hide"),
    ("cannot GET http://u:hunter2@a/?k=hunter2 now", "cannot GET http://a/?k=*** now"),
    ("Error('redis://:hunter2@h:6379/0')", "Error('redis://h:6379/0')"),
    ('{"url":"http://u:hunter2@a/"}', '{"url":"http://a/"}'),
    ("HTTP://u:hunter2@a/", "http://a/"),
    ("http://u:hun<ter2@a/", "http://a/"),
    ("http://u:hun'ter2@a/", "http://a/"),
    ("http://u:hunter2@a/ http://u:hunter2@b/", "http://a/ http://b/"),
    ("http://u:hunter2@a/,http://u:hunter2@b/", "http://a/,http://b/"),
    ("two\nlines\x00", "two\\u000alines\\u0000"),
    (ValueError("http://u:hunter2@a/"), "http://a/"),
    ("\u2028\u202a\u2066\u2069\x9b", "\\u2028\\u202a\\u2066\\u2069\\u009b"),
    ("no field line: b'Set-Cookie hunter2'", "no field line: ***"),
    ("b\"hun'ter2\" b'hunt\\'er2\\\\' x", "*** *** x"),
    ("a web'site'", "a web'site'"),
    (None, "None"),
]

FINAL_URLS = [
    ("http://a/", "http://a/"),
    ("http://a/?", "http://a/?"),
    ("http://a/b?page=2&sort=name", "http://a/b?page=2&sort=name"),
    ("http://a/?token=hunter2", "http://a/?token=***"),
    ("http://a/?token=&x=1", "http://a/?token=&x=1"),
    ("http://a/?secretKey=hunter2&bearer=hunter2", "http://a/?secretKey=***&bearer=***"),
    ("http://a/?x=1&access_token=hunter2&y=2", "http://a/?x=1&access_token=***&y=2"),
    ("http://a/?X-Amz-Signature=hunter2&X-Amz-Date=1", "http://a/?X-Amz-Signature=***&X-Amz-Date=1"),
    ("http://a/?X-Amz-Security-Token=hunter2", "http://a/?X-Amz-Security-Token=***"),
    ("http://a/?X-Goog-Credential=hunter2", "http://a/?X-Goog-Credential=***"),
    ("http://a/?sv=1&sig=hunter2", "http://a/?sv=1&sig=***"),
    ("http://a/?a=1;password=hunter2;b=2", "http://a/?a=1;password=***;b=2"),
    (
        "http://a/?apiKey=hunter2&api-key=hunter2&API_KEY=hunter2",
        "http://a/?apiKey=***&api-key=***&API_KEY=***",
    ),
    ("http://a/?%74oken=hunter2", "http://a/?%74oken=***"),
    ("http://a/?client%5Fsecret=hunter2", "http://a/?client%5Fsecret=***"),
    ("http://a/?auth%5Bkey%5D=hunter2", "http://a/?auth%5Bkey%5D=***"),
    ("http://a/?token=hunter2=?hunter2", "http://a/?token=***"),
    ("http://a/?code=hunter2&state=x", "http://a/?code=***&state=x"),
    ("http://a/?monkey=1&encode=2&tokens=3", "http://a/?monkey=1&encode=2&tokens=3"),
    ("http://u:hunter2@a/?b=1", "http://a/?b=1"),
    ("http://a/token=1/key=2", "http://a/token=***/key=2"),
]

HARMLESS = [
    "http://a/?q=C%2B%2B%3Dgood&sort=price%3Aasc&page=2",
    "http://a/?redirect=https%3A%2F%2Fexample.com%2Fpage%3Fid%3D5%26lang%3Den",
    "http://a/?email=bob@example.com&at=12:30&me=http://x/@me",
    "http://a/?filter=%7B%22name%22%3A%22x%22%2C%22tags%22%3A%5B1%5D%7D",
    "http://a/?q=bearer+bonds&t=a+b&ids[]=1&ids[]=2&b64=aGk%3D==",
    "http://a/?100%25&x=%E4%BD%A0&y=%FF&z=%zz",
    "http://a/a;v=1.1;lang=en/b%20c/%D0%B0;x/@me,(1)'%3D",
    "http://a/?tokens=3&tokenizer=x&author=y&monkey=z&passage=1&cookies=true&secretary=b",
    "http://[::1]:8080/a?b#c",
]

PLACES = [
    "http://a/?token={}",
    "http://a/?TOKEN={}&x=1",
    "http://a/?t%6Fken={}",
    "http://a/?t%256Fken={}",
    "http://a/?user[password]={}",
    "http://a/?token[0]={}",
    "http://a/?token1={}",
    "http://a/?\uff54\uff4f\uff4b\uff45\uff4e={}",
    "http://a/?x=1;jsessionid={}",
    "http://a/?x=1&amp;token={}",
    "http://a/?x=token={}",
    "http://a/?x=1?token={}",
    "http://a/?%74oken%3D{}",
    "http://a/?x=token%3D{}",
    "http://a/?x=1%26token%3D{}",
    "http://a/?x=1%253Btoken%253D{}",
    "http://a/?token%3Dx%26sig={}",
    "http://a/b;jsessionid={}",
    "http://a/b;JSESSIONID={}/c",
    "http://a/b;v=1;token%3D{}",
    "http://a/b%3Bjsessionid%3D{}/c",
    "http://a/b&token={}",
    "http://a/#access_token={}",
    "http://a/?x#state=1&id_token={}",
    "http://a/?next=https%3A%2F%2Fu%3A{}%40h%2Fx",
    "http://a/?next=https://u:{}@h/x",
    "http://a/?next=%2F%2Fu%3A{}%40h%2Fx",
    "http://a/?next=https%3A%5C%5Cu%3A{}%40h",
    "http://a/?next=https%3A%2F%2Fh%2F%3Fa%3D1%26token%3D{}",
    "http://a/?next=https%253A%252F%252Fh%252F%253Ftoken%253D{}",
    "http://a/?next=https%3A%2F%2Fh%2F%3Fnext%3Dhttps%253A%252F%252Fu%253A{}%2540i%252F",
    "http://a/go/https%3A%2F%2Fh%2F%3Ftoken%3D{}",
    "http://a/go/https%253A%252F%252Fu%253A{}%2540h",
    "http://a/go/https://u:{}@h/",
    "http://a/go/token%3D{}",
    "http://a/go/token={}",
    "http://a/://@/u:{}@h",
    "http://a/access_token={}/b;v=1",
    "http://a/go/api_key%3D{}%26a%3D1/x",
    "http://u:{}@a/",
    "http://{}@a/x",
    "postgres://u:{}@a/db",
    "http://a/?data=%7B%22token%22%3A%22{}%22%7D",
    "http://a/?data=%7B%22a%22%3A%7B%22token%22%3A%22{}%22%7D%7D",
    "http://a/?data=%7B%22a%22%3A%22%7B%5C%22token%5C%22%3A%5C%22{}%5C%22%7D%22%7D",
    "http://a/?data=%7B%22token%22%3A%7B%22b%22%3A%22{}%22%7D%7D",
    "http://a/?data=%7B%22token%22:%22{}%22",
    "http://a/?data=%7B%22token%22:+%22{}%22,",
    "http://a/?h=Authorization:+Bearer+{}",
    "http://a/?h=Authorization%3A%20Basic%20{}",
    "http://a/?h=Cookie%3A%20a%3D1%3B%20b%3D{}",
]
"""URLs with a secret, in a place that a host may give it."""

PROSE_PLACES = [
    "cannot reach postgres://u:{}@db/x now",
    "Authorization: Bearer {}",
    "sent Proxy-Authorization: Basic {}\nother",
    "with Bearer {} it failed",
    "Set-Cookie: session={}; Path=/",
    "{{'Authorization': 'Bearer {}', 'Accept': 'x'}}",
    '{{"a": {{"api_key": "{}"}}}}',
    "login failed: password={} is wrong",
    "login failed: password='{} x' is wrong",
    "api_key: {}",
    "redirected to https%3A%2F%2Fh%2F%3Ftoken%3D{} twice",
    "amqp+ssl://u:{}@mq/%2F",
    "/x?a=1&code={}",
    '{{"next": "?a=1&code={}"}}',
    'bad header line "X-Auth-Token: {}"',
]

SECRETS = st.from_regex(r"S3C[A-Za-z0-9._~-]{0,10}RET", fullmatch=True)

PASSWORDS = st.from_regex(r"[A-Za-z0-9!$&()*+,;=:%/?#<>\[\]-]{6,20}", fullmatch=True).map("S3C{}RET".format)


@pytest.mark.parametrize(("url", "shown"), URLS)
def test_a_url_is_shown_without_possible_secrets(url: str, shown: str) -> None:
    """The text has no user, password, fragment or query value, and controls are escaped."""
    assert shown == redact.url(url)


@pytest.mark.parametrize(("url", "shown"), FINAL_URLS)
def test_a_final_url_is_shown_without_secret_parameters(url: str, shown: str) -> None:
    """The other parameters stay."""
    assert shown == redact.final_url(url)


@pytest.mark.parametrize("url", HARMLESS)
def test_a_url_without_secrets_is_not_changed(url: str) -> None:
    """A consumer finds its fetch by it. Its escapes stay as they are."""
    assert redact.final_url(url) == url
    assert redact.result({"url": url, "meta": {"see": url}}) == {"url": url, "meta": {"see": url}}


@pytest.mark.parametrize("place", PLACES)
@given(secret=SECRETS)
@settings(max_examples=5)
def test_no_secret_of_a_url_is_shown_in_any_place(place: str, secret: str) -> None:
    """The final URL, logs, texts and meta hide it, with further encoding too."""
    for url in (place.format(secret), place.format(secret) + "&last=1"):
        encoded = quote(url, safe="")
        ways = [
            redact.final_url(url),
            redact.url(url),
            redact.text(f"no {url}, sorry"),
            redact.text(repr({"url": url})),
            redact.final_url(f"http://b/?to={encoded}"),
            redact.final_url(f"http://b/to/{encoded}"),
            redact.final_url(f"http://b/?to={quote(encoded, safe='')}"),
            redact.url(f"http://b/to/{encoded}?x"),
            str(redact.record({"meta": {"a": [url, f"see {url}"]}, "note": url, "url": url})),
            str(redact.result({"final_url": url, "url": url, "meta": json.dumps({"a": url})})),
        ]
        assert [way for way in ways if "S3C" in way or "RET" in way] == []
        assert redact.final_url(ways[0]) == ways[0]


@pytest.mark.parametrize("place", PROSE_PLACES)
@given(secret=SECRETS)
@settings(max_examples=5)
def test_no_secret_in_prose_is_shown(place: str, secret: str) -> None:
    """An error, a note and meta hide it."""
    prose = place.format(secret)
    ways = [
        redact.text(prose),
        str(redact.record({"note": prose, "meta": {"a": prose}})),
        redact.text(repr(prose)),
    ]

    assert [way for way in ways if "S3C" in way or "RET" in way] == []


ODD_SECRETS = st.text(st.characters(codec="utf-8"), max_size=8).map("S3C{}RET".format)
NAMES = st.sampled_from(["token", "X-Amz-Signature", "api_key", "jsessionid", "code", "PHPSESSID", "sig"])


def placed(secret: str, name: str) -> list[str]:
    """Return texts that hold a secret, each as a well-formed part of its kind."""
    value = quote(secret, safe="")
    plain = [f"https://h/?{name}={value}", f"https://h/p;{name}={value}?x", f"https://u:{value}@h/"]
    plain += [
        f"/x?{name}={value}",
        f"?a=1&{name}={value}",
        f"{name}={value}&a=1",
        f"https://h/#{name}={value}",
    ]
    return [*plain, json.dumps({name: secret}), json.dumps({"a": [{name: secret}], "b": plain})]


NESTINGS = [
    lambda text: f"https://o/?next={quote(text, safe='')}",
    lambda text: f"https://o/?a=1&next={quote_plus(text)}&z=2",
    lambda text: f"https://o/go/{quote(text, safe='')}/x",
    lambda text: f"https://o/p;to={quote(text, safe='')}/x?y",
    lambda text: json.dumps({"next": text}),
]


@given(ODD_SECRETS, NAMES, st.lists(st.sampled_from(NESTINGS), max_size=3))
def test_no_nesting_uncovers_a_secret(secret: str, name: str, nestings: list[Callable[[str], str]]) -> None:
    """It holds with arbitrary characters and arbitrary nesting."""
    for text in placed(secret, name):
        for nest in nestings:
            text = nest(text)  # noqa: PLW2901 each time around the one before
        url = text if text.startswith("http") else f"https://top/?v={quote(text, safe='')}"
        ways = [
            redact.final_url(url),
            redact.url(url),
            str(redact.record({"meta": [text]})),
            redact.text(f"x {url}"),
        ]
        assert [way for way in ways if "S3C" in way or "RET" in way] == []


@pytest.mark.parametrize(
    "prose",
    [
        "Error(104, 'Connection reset by peer') at 10:30: no token was sent",
        "client_key: client_cert is not set; code=504, key: a.example",
        "host 'a.example' said: authorization is required, Bearer authentication",
        "WRONGPASS invalid username-password pair or user is disabled.",
        "line 7: headers: a name that begins with 'Authorization' is invalid",
    ],
)
def test_prose_without_secrets_is_not_changed(prose: str) -> None:
    """Names of secret parameters are ordinary words in prose."""
    assert redact.text(prose) == prose


def test_a_value_that_is_encoded_too_often_is_hidden() -> None:
    """An element that cannot be decoded may be a secret."""
    value = "token=S3CRET"
    for _ in range(20):
        value = quote(value, safe="")

    assert redact.final_url(f"http://a/?x={value}") == "http://a/?x=***"
    assert "S3CRET" not in redact.final_url(f"http://a/{value}/b?{value}")


@given(
    st.lists(
        st.sampled_from(
            ["?", "&", "=", ";", "%3D", "%26", "token", "a", "/", "://", "@", "%25", "{", '"', ":"]
        )
    )
)
@example(["token", "?", "%3D", "token", "%3D", "?"])
def test_arbitrary_urls_are_redacted(parts: list[str]) -> None:
    """No error is raised, and a second redaction changes nothing."""
    odd = f"http://a/{''.join(parts)}"
    shown = redact.final_url(odd)

    assert redact.final_url(shown) == shown
    assert redact.url(odd)
    assert redact.text(odd)


@pytest.mark.parametrize(
    "piece", ["a=", "%25", "'a", '"token":', "cookie:", "http://", "x", "a.-[", ":/", "{", "+:"]
)
def test_a_long_text_is_redacted_in_linear_time(piece: str) -> None:
    """Each pattern needs only a few passes."""
    began_s = time.process_time()
    redact.record({"meta": piece * 20_000})
    redact.final_url(f"http://a/?x={piece * 2_000}")

    assert time.process_time() - began_s < 2


@given(
    st.lists(
        st.tuples(st.sampled_from(["token", "x_sig", "Key", "a", "%41uth"]), st.text("abc%3D+=", max_size=5))
    )
)
def test_redaction_is_idempotent_and_keeps_names(pairs: list[tuple[str, str]]) -> None:
    """It holds with any separators between the parameters."""
    shown = redact.final_url("http://a/?" + "&".join(f"{name}={value}" for name, value in pairs))

    assert shown == redact.final_url(shown)
    assert [name for name, _ in pairs] == [part.partition("=")[0] for part in shown[10:].split("&") if part]


@pytest.mark.parametrize(("value", "shown"), TEXTS)
def test_every_url_in_a_text_is_redacted(value: object, shown: str) -> None:
    """Errors quote URLs in many ways, and several at once."""
    assert shown == redact.text(value)


@pytest.mark.parametrize(("length", "shown"), [(299, 299), (300, 300), (301, 300), (10**6, 300)])
def test_a_text_is_cut_to_300_characters(length: int, shown: int) -> None:
    """Log lines stay readable."""
    assert shown == len(redact.text("x" * length))


def test_a_text_is_cut_after_it_is_redacted() -> None:
    """A cut before that could hide the end of a password."""
    shown = redact.text("x" * 285 + " http://u:hunter2@example.com/")

    assert "hunter2" not in shown


@given(PASSWORDS, st.sampled_from(["redis", "rediss", "unix"]), st.sampled_from(["", "user"]))
def test_no_password_of_a_redis_url_is_shown(password: str, scheme: str, user: str) -> None:
    """A password may be pasted raw, with characters that end a host."""
    shown = redact.url(f"{scheme}://{user}:{password}@host:6379/0")

    assert "S3C" not in shown
    assert "RET" not in shown


@given(
    st.from_regex(r"[A-Za-z0-9!$&'()*+,;=:%@<>-]{1,20}", fullmatch=True).map("S3C{}".format),
    st.text(),
    st.text(),
)
def test_no_userinfo_of_a_url_in_a_text_is_shown(secret: str, before: str, after: str) -> None:
    """It holds with any text around it."""
    assert "S3C" not in redact.text(f"{before}http://{secret}@host/ {after}")


@given(st.text() | st.text("\n\x1b\x9b\u2028\u202e\u2066\u2069a"))
def test_shown_text_is_one_line_without_controls(text: str) -> None:
    """A hostile server cannot write to an operator's terminal, or forge a line."""
    hostile = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

    assert not hostile.search(redact.text(text))
    assert not hostile.search(redact.url(f"http://a/{text}"))


SHOWN_FIELDS = {
    *("url", "method", "headers", "body_file", "dest", "if_exists", "sha256", "max_bytes", "etag"),
    *("last_modified", "revalidate", "decode", "lines", "priority", "deadline_s", "retry_unsafe"),
    *("fallback", "key", "meta", "name", "accept", "retry_statuses", "x_robots", "segments", "sign"),
}


def test_every_field_of_a_fetch_is_shown_or_hidden_on_purpose() -> None:
    """A new field must be added to the hidden ones or to this list."""
    assert set(Fetch.__struct_fields__) == SHOWN_FIELDS | (redact.HIDDEN_FIELDS - {"text"})


@given(
    st.lists(st.from_regex(r"[A-Za-z-]{1,20}", fullmatch=True), max_size=4),
    st.text(alphabet=st.sampled_from("?&=#'\"ab"), max_size=20),
)
def test_a_record_shows_no_header_body_or_query(names: list[str], query: str) -> None:
    """It holds at any place of the fetch in the record, with any text around a secret."""
    fetch = {
        "url": f"http://h/?{query}hunter2",
        "headers": {f"X-{name}": "hunter2" for name in names},
        "body": "hunter2",
        "body_base64": "hunter2",
        "traceparent": "hunter2",
        "tracestate": "hunter2",
        "meta": {"list": [{"api_key": "hunter2"}, "see http://u:hunter2@h/?sig=hunter2"]},
    }
    unquoted = query.replace("'", "").replace('"', "")
    letter = {"note": f"no http://u:hunter2@h/?{unquoted}hunter2", "fetch": fetch, "text": "hunter2"}
    shown = redact.record({"all": [fetch, letter]})

    assert "hunter2" not in str(shown)
    assert [f"X-{name}" for name in dict.fromkeys(names)] == list(shown["all"][0]["headers"])


def test_a_result_keeps_query_parameters_that_are_not_secrets() -> None:
    """A consumer finds the fetch by its URL. A result without secrets is not marked."""
    plain = {"id": "a", "url": "http://h.example/a?page=2&q=x", "final_url": None, "meta": {"order": 7}}
    secret = {**plain, "url": "http://u:p@h.example/a?page=2&token=x", "meta": {"password": "x"}}
    hidden = {"url": "http://h.example/a?page=2&token=***", "meta": {"password": "***"}, "redacted": True}

    assert redact.result(plain) == plain
    assert redact.result(secret) == {**plain, **hidden}


def test_a_record_keeps_harmless_values() -> None:
    """Numbers, names, paths, harmless header fields, and meta."""
    record = {
        "url": "http://h/a",
        "path": "a/b",
        "bytes": 7,
        "headers": {"accept": "text/csv"},
        "meta": {"order": 7, "see": "https://h/?page=2", "note": None},
        "body": None,
        "lanes": [{"name": "h", "opens_in_s": 0.5}],
    }

    assert redact.record(record) == record


@pytest.mark.parametrize("levels", [90, 480, 900])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}"), ('["x",{"b":', "}]")])
def test_deeply_nested_json_is_redacted_or_hidden(levels: int, begin: str, end: str) -> None:
    """In a URL, whose path fits in 8192 bytes with 900 levels, in a text, and in meta."""
    nested = f'{begin * levels}{{"password":"hunter2"}}{end * levels}'
    encoded = quote(nested, safe="")

    for path in (f"/{encoded}", f"/?{encoded}=1", f"/a?a={encoded}", f"/;b={encoded}"):
        assert "hunter2" not in redact.url(f"http://h{path}")
        assert "hunter2" not in redact.final_url(f"http://h{path}")
        assert "hunter2" not in redact.text(f"not http://h{path}")
    assert "hunter2" not in redact.text(f"not {nested} and {encoded}")
    assert "hunter2" not in redact.result({"meta": nested, "url": f"http://h/{encoded}"})["meta"]


def test_a_text_with_a_stray_byte_is_redacted() -> None:
    """Errors of the disk quote names of files, which need not be UTF-8."""
    assert "hunter2" not in redact.text("no /out/\udcff%00?token=hunter2 or %3Ftoken%3Dhunter2%26\udcff")


def test_meta_of_another_program_is_hidden_if_it_is_nested_too_deeply() -> None:
    """The rest of its result is shown."""
    meta: list[object] = []
    for _ in range(5000):
        meta = [meta]

    assert redact.result({"id": "a", "meta": meta}) == {"id": "a", "meta": "***", "redacted": True}


@pytest.mark.parametrize("name", ["secretKey", "secret_key", "userPin", "bearer", "cookies", "setCookie"])
def test_a_secret_in_meta_is_hidden_for_every_style_of_its_name(name: str) -> None:
    """The name may have underscores or be in camel case."""
    assert redact.record({"meta": {name: ["hunter2"]}})["meta"] == {name: redact.HIDDEN}
