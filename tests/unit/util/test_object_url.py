"""URLs of object stores."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.util.object_url import ObjectUrl, parse


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("s3://bucket", ObjectUrl("s3", "bucket", "")),
        ("s3://bucket/", ObjectUrl("s3", "bucket", "")),
        ("gs://my.bucket_1/a/b/", ObjectUrl("gs", "my.bucket_1", "a/b")),
        ("az://container/a b%20c/é", ObjectUrl("az", "container", "a b%20c/é")),
    ],
)
def test_scheme_bucket_and_prefix_are_read_literally(text: str, url: ObjectUrl) -> None:
    """The prefix is not percent-decoded; a slash at its end is dropped."""
    assert parse(text) == url
    assert parse(str(url)) == url


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("ftp://bucket/x", "ftp is not a store; choose s3://, gs://, az://"),
        ("s3://key:secret@bucket/x", "has credentials"),
        ("s3://bucket:9000/x", "a port"),
        ("s3://bucket/x?token=secret", "has a query"),
        ("s3://bucket/x#secret", "has a query or a fragment"),
        ("s3://", "'' is not the name of a bucket"),
        ("s3:///x", "'' is not the name of a bucket"),
        ("s3://b/x", "'b' is not the name of a bucket"),
        ("s3://bucket//x", "an empty part"),
        ("s3://bucket/../x", "a dot part"),
        ("s3://bucket/a\nb", "a control character"),
        ("s3://bucket/" + "x" * 513, "more than 512 bytes"),
    ],
)
def test_an_invalid_url_is_refused_without_its_secrets(text: str, fault: str) -> None:
    """The message says what to write."""
    with pytest.raises(ValueError, match=re.escape(fault)) as caught:
        parse(text)

    assert "secret" not in str(caught.value)


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """A URL that is parsed has one text form."""
    try:
        url = parse(text)
    except ValueError:
        return

    assert parse(str(url)) == url
