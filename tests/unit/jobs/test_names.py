"""Templates of file names: any value gives a safe path."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fetchfleet.jobs.contract import names
from fetchfleet.jobs.contract.checks import field_checks
from fetchfleet.jobs.contract.fetch import Fetch, decode_fetch, encode
from fetchfleet.jobs.contract.safe_text import UNSAFE
from fetchfleet.jobs.errors import InvalidFetchError

ID = "0123456789abcdef-0000002a"
DEVICES = {
    *("con", "prn", "aux", "nul", "conin$", "conout$"),
    *(f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"),
}
FIELDS = (*names.FIELDS, "meta.key")

HOSTILE = st.one_of(
    st.text(max_size=20),
    st.text('./\\ :*?"<>|\0\r\n\u202e\u200d~-conula1.', max_size=300),
    st.sampled_from(
        ["", ".", "..", "...", ".fetchfleet", ".FETCHFLEET", ".fetch\u200dfleet/x", "CON", "nul.txt"]
    ),
    st.sampled_from(
        ["../../etc/passwd", "/etc/passwd", "C:\\x", "COM1 .txt", " .bashrc", "é" * 300, "\ud800"]
    ),
    st.sampled_from(["a" * 300 + ".tar.gz", "%2e%2e/%2e%2e", "%00/%ff/%2F", "a//b", "/", "//"]),
)
LITERALS = st.text("abcXYZ0189-_. ", max_size=6)
PARTS = st.lists(LITERALS | st.sampled_from([f"{{{field}}}" for field in FIELDS]), max_size=4).map("".join)
TEMPLATES = st.lists(PARTS, min_size=1, max_size=4).map("/".join)


def require_safe(path: str) -> None:
    """Fail unless the path is valid on every file system and stays in the out folder."""
    field_checks.dest(path)
    for part in path.split("/"):
        assert not UNSAFE.search(part)
        assert not set(part) & set('<>:"|?*\\')
        assert not part.endswith((".", " "))
        assert part.partition(".")[0].rstrip().lower() not in DEVICES
        assert not part.replace("\u200d", "").replace("\u200c", "").casefold().startswith(".fetchfleet")


@given(TEMPLATES, st.fixed_dictionaries(dict.fromkeys(FIELDS, HOSTILE)))
@example("{host}/{path}", {"host": "a", "path": "/%2e%2e/con/.FetchFleet/"})
@example(".{stem}", {"stem": "fetchfleet"})
@example("{stem}{ext}", {"stem": "co", "ext": "n"})
@example("{meta.key}.{ext}", {"meta.key": "", "ext": "."})
def test_every_value_gives_a_safe_path(template: str, values: dict[str, str]) -> None:
    """Templates that could give no such path are refused, and so are paths that are too long."""
    try:
        parsed = names.parse(template)
        path = names.expand(parsed, values)
    except InvalidFetchError:
        return

    require_safe(path)
    require_safe(names.suffixed(path, ID))
    assert names.suffixed(path, ID) != path
    if "path" not in parsed.fields:
        assert path.count("/") == template.count("/")


@given(st.text("abé", min_size=80, max_size=300), st.text("abé", min_size=80, max_size=300))
@example("a" * 300, "a" * 299 + "b")
@example("é" * 300, "é" * 301)
def test_values_that_differ_have_names_that_differ_however_long(one: str, other: str) -> None:
    """A name that is cut has a part of the digest of the whole."""
    assert (one == other) is (names.safe_part(one) == names.safe_part(other))


@pytest.mark.parametrize(
    ("url_path", "expected"),
    [
        ("/a/b.jpg", "a/b.jpg"),
        ("/", "index.html"),
        ("/a/", "a/index.html"),
        ("/a//b", "a/b"),
        ("/caf%C3%A9/%E2%82%AC", "café/€"),
        ("/%ff/x", "%ff/x"),
        ("/a%2Fb", "a_b"),
        ("/%2e%2e/%2e/x", "_/_/x"),
        ("/.well-known/x", ".well-known/x"),
        ("/.fetchfleet/x", "_fetchfleet/x"),
        ("/a:b/c*", "a_b/c_"),
    ],
)
def test_the_path_of_a_url_becomes_folders_and_a_file(url_path: str, expected: str) -> None:
    """A path that ends in a slash has the file name that other tools use."""
    assert f"h/{expected}" == names.expand(names.parse("{host}/{path}"), {"host": "h", "path": url_path})


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("/{stem}", "name: '/{stem}' is absolute"),
        ("../{stem}", "leaves the out folder"),
        ("{host}//{stem}", "has an empty part"),
        ("{host}/", "has an empty part"),
        (".fetchfleet/{id}", "is reserved"),
        (".FetchFleet/{id}", "is no safe file name"),
        ("con/{id}", "'con' is no safe file name on every system"),
        ("a:b/{id}", "':' is not allowed in file names on every system"),
        ("{nmae}", "{nmae} is not a placeholder; use one of {host} {path} {stem} {ext}"),
        ("{meta}", "{meta} is not a placeholder"),
        ("{meta.}", "{meta.} is not a placeholder"),
        ("{}", "{} is not a placeholder"),
        ("{id", "has a brace without its partner"),
        ("{host}{path}", "{path} has folders, so it needs a slash in front of it"),
        ("a\n{id}", "has '\\\\n'"),
        ("", "has an empty part"),
    ],
)
def test_a_template_that_can_give_no_safe_path_is_refused(template: str, error: str) -> None:
    """The error has the reason."""
    with pytest.raises(InvalidFetchError) as raised:
        Fetch(url="http://a/", name=template)

    assert str(raised.value).startswith("name: ")
    assert error.replace("\\\\", "\\") in str(raised.value)


def test_a_dest_with_a_placeholder_is_a_name() -> None:
    """Other braces in a dest are literal. One of the two fields may be set."""
    template, literal = Fetch(url="http://a/", dest="x/{id}.bin"), Fetch(url="http://a/", dest="x/{no}.bin")

    assert (None, "x/{id}.bin") == (template.dest, template.name)
    assert ("x/{no}.bin", None) == (literal.dest, literal.name)
    assert template == decode_fetch(encode(template))
    with pytest.raises(InvalidFetchError, match="name: cannot be combined with dest"):
        Fetch(url="http://a/", dest="a", name="{id}")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.jpg", f"a-{ID}.jpg"),
        ("f.d/a", f"f.d/a-{ID}"),
        ("a.tar.gz", f"a-{ID}.tar.gz"),
        ("a.2024", f"a.2024-{ID}"),
        (".hidden", f".hidden-{ID}"),
        ("x/" + "é" * 127 + ".webp", "x/" + "é" * 112 + f"-{ID}.webp"),
    ],
)
def test_the_suffix_precedes_the_extension(path: str, expected: str) -> None:
    """A long name is cut between two characters."""
    assert expected == names.suffixed(path, ID)
    assert unicodedata.is_normalized("NFC", expected)


def test_a_path_that_is_too_long_is_refused() -> None:
    """A URL may have 8192 bytes; a path has at most 998, so that a suffix fits."""
    with pytest.raises(InvalidFetchError, match="name: gives a path of more than 998 bytes"):
        names.expand(names.parse("{path}"), {"path": "/a" * 600})
