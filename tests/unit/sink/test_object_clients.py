"""The clients of object stores, made from URL and environment without a connection."""

import pytest

from fetchfleet.worker.errors import CommandError
from fetchfleet.worker.sink.objects.store import ObjectStore, cause_of
from fetchfleet.worker.util.object_url import parse

LONG = "Generic S3 error: Error performing PUT http://host/key?X-Amz-Signature=abc in 3ms, after 2 retries - "
STATUS = f"{LONG}Server returned non-2xx status code:"
SLOW_DOWN = "<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>"
DEBUG = "\n\nDebug source:\nGeneric {"
REFUSED = f'{DEBUG} kind: Connect,\n Os {{\n code: 111,\n message: "Connection refused",\n}}'


@pytest.mark.parametrize("url", ["s3://bucket/a", "gs://bucket/a", "az://container/a"])
def test_each_kind_of_store_has_a_client(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Credentials are looked up when they are needed."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")

    assert ObjectStore(parse(url)).url == parse(url)


def test_a_missing_setting_of_a_store_is_an_error_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """An Azure account has no default."""
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)

    with pytest.raises(CommandError, match="Account must be specified") as caught:
        ObjectStore(parse("az://container/a"))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (f"{STATUS} 503 Down: {SLOW_DOWN}{DEBUG}", "503 Down: SlowDown: Reduce your rate"),
        (f"{STATUS} 401 Unauthorized: {DEBUG}", "401 Unauthorized"),
        (f"{LONG}HTTP error: error sending request{DEBUG}", "HTTP error: error sending request"),
        (
            f"{LONG}HTTP error: error sending request{REFUSED}",
            "HTTP error: error sending request: Connection refused",
        ),
        ("x" * 1000, "x" * 200),
    ],
)
def test_the_cause_of_an_error_has_no_url(text: str, cause: str) -> None:
    """It has the status, the code and the message of the store."""
    assert cause_of(Exception(text)) == cause


def test_an_endpoint_without_tls_needs_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names it. Another start would fail too."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("AWS_ALLOW_HTTP", raising=False)

    with pytest.raises(CommandError, match="AWS_ALLOW_HTTP=true") as caught:
        ObjectStore(parse("s3://bucket/a")).check()
    assert caught.value.exit_code == 2
