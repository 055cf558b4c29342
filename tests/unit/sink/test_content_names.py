"""The file name that a response suggests."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fetchfleet.worker.sink.content_names import EXTENSIONS, content_name, file_name_of

URL = "http://a.example/d/page.php?file=x.pdf"


@pytest.mark.parametrize(
    ("disposition", "expected"),
    [
        ("attachment; filename=a.jpg", "a.jpg"),
        ('attachment; filename="a b;c.jpg"', "a b;c.jpg"),
        ('inline; FileName = "a.jpg" ; size=3', "a.jpg"),
        (r'attachment; filename="a\"b.jpg"', 'a"b.jpg'),
        ("filename=a.jpg", "a.jpg"),
        ("attachment; filename=a.jpg; filename*=UTF-8''%e2%82%ac.jpg", "€.jpg"),
        ("attachment; filename*=iso-8859-1'en'%A3.jpg", "£.jpg"),
        ("attachment; filename*=UTF-8''%ff.jpg; filename=a.jpg", "a.jpg"),
        ("attachment; filename*=utf-7''x.jpg; filename=a.jpg", "a.jpg"),
        ("attachment; filename*=x.jpg; filename=a.jpg", "a.jpg"),
        ('attachment; filename="' + "é".encode().decode("latin-1") + '.jpg"', "é.jpg"),
        ('attachment; filename="\xa3.jpg"', "£.jpg"),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        (r'attachment; filename="C:\\dir\\a.jpg"', "a.jpg"),
        ("attachment; filename*=UTF-8''..%2F..%5Ca.jpg", "a.jpg"),
        ('attachment; name="; filename=evil"; filename=good', "good"),
        ('attachment; filename=".."', ""),
        ('attachment; filename=""', ""),
        ("attachment", ""),
        ("", ""),
    ],
)
def test_the_file_name_of_a_content_disposition(disposition: str, expected: str) -> None:
    """`filename*` takes precedence (RFC 6266 §4.3). Folders are left out."""
    assert expected == file_name_of(disposition)


@pytest.mark.parametrize(
    ("url", "disposition", "content_type", "expected"),
    [
        (URL, "attachment; filename=Report.PDF", "text/html", ("Report", ".pdf")),
        (URL, "attachment; filename=Report", "application/pdf", ("Report", ".php")),
        (URL, None, "application/pdf", ("page", ".php")),
        ("http://a.example/photo", None, "image/jpeg; q=1", ("photo", ".jpg")),
        ("http://a.example/photo_1.5", None, "IMAGE/WEBP", ("photo_1.5", ".webp")),
        ("http://a.example/x", None, "application/octet-stream", ("x", "")),
        ("http://a.example/x.tar.gz", None, None, ("x", ".tar.gz")),
        ("http://a.example/caf%C3%A9.PNG", None, None, ("café", ".png")),
    ],
)
def test_the_extension_is_from_the_first_source_that_has_one(
    url: str, disposition: str | None, content_type: str | None, expected: tuple[str, str]
) -> None:
    """Content-Disposition, then the URL, then the media type."""
    assert expected == content_name(url, url, disposition, content_type)


def test_the_url_of_the_fetch_is_used_if_the_last_one_has_no_file_name() -> None:
    """A redirect may lead to a folder."""
    assert ("a", ".jpg") == content_name("http://b.example/d/", "http://a.example/a.jpg")
    assert ("index", ".html") == content_name("http://b.example/", "http://a.example/", None, "text/html")


def test_the_extensions_of_media_types_are_extensions() -> None:
    """Each would be found at the end of a file name, too."""
    for extension in EXTENSIONS.values():
        assert ("x", extension) == content_name(f"http://a.example/x{extension}", URL)


@given(
    st.text("attachmen;filename*=\"\\ '%UTF-8/.", max_size=60) | st.text(max_size=60), st.text(max_size=20)
)
@example('attachment; filename="' + "\\" * 5000, "")
def test_any_header_gives_a_name(disposition: str, content_type: str) -> None:
    """A hostile field raises nothing, and its name has no folder."""
    stem, extension = content_name(URL, URL, disposition, content_type)

    assert stem
    assert extension == "" or extension.startswith(".")
    assert "/" not in file_name_of(disposition)
