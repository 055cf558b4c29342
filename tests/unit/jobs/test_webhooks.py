"""Webhooks: secrets, signatures and events."""

import base64
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from fetchfleet import InvalidFetchError
from fetchfleet.jobs.client.submit import new_batch_id
from fetchfleet.jobs.contract.ids import is_batch_id, is_inbox_name
from fetchfleet.jobs.contract.webhooks import (
    SigningKeys,
    batch_ended,
    is_webhook,
    notify_url,
    webhook_batch_id,
)

SECRETS = st.binary(min_size=24, max_size=64).map(lambda raw: "whsec_" + base64.b64encode(raw).decode())
BATCH_IDS = st.text("0123456789abcdef", min_size=16, max_size=16)


@given(
    st.lists(SECRETS, min_size=1, max_size=3),
    st.text("0123456789abcdef-", min_size=1),
    st.integers(0, 2**33),
    st.text(),
)
def test_each_secret_signs_as_the_reference_library_does(
    secrets: list[str], message_id: str, timestamp_s: int, body: str
) -> None:
    """During a rotation, receivers with either secret accept the request."""
    body = body.encode(errors="replace").decode()
    headers = dict(SigningKeys.parse(" , ".join(secrets)).headers(message_id, timestamp_s, body))

    at = datetime.fromtimestamp(timestamp_s, UTC)
    assert headers == {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(Webhook(secret).sign(message_id, at, body) for secret in secrets),
    }


@pytest.mark.parametrize(
    "text",
    [
        "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(),
        base64.b64encode(b"x" * 32).decode(),
        "whsec_" + "?" * 44,
        "whsec_ü" + "x" * 43,
        "whsec_" + "a" * 45,
        "whsec_" + base64.b64encode(b"x" * 32).decode() + ",",
    ],
    ids=["short", "long", "no prefix", "not base64", "not ASCII", "wrong length", "empty item"],
)
def test_the_error_for_a_secret_does_not_show_it(text: str) -> None:
    """It names the place in the list and a command that makes a valid secret."""
    with pytest.raises(ValueError, match=r"secret \d must be whsec_ .*openssl rand") as caught:
        SigningKeys.parse(text)
    assert text.strip(",") not in str(caught.value)
    assert text.removeprefix("whsec_")[:20] not in str(caught.value)


def test_secrets_may_lack_their_padding_and_are_never_shown() -> None:
    """Without a secret, the keys are false."""
    padded = "whsec_" + base64.b64encode(b"x" * 25).decode()
    keys = SigningKeys.parse(padded.rstrip("="))
    assert keys.headers("a", 1, "") == SigningKeys.parse(padded).headers("a", 1, "")
    assert repr(keys) == "<SigningKeys 1>"
    assert not SigningKeys.parse(" ")


@given(BATCH_IDS)
def test_the_batch_of_a_webhook_has_an_id_that_no_other_batch_has(batch_id: str) -> None:
    """It is derived from that of the batch, and its prefix belongs to no inbox."""
    webhook = webhook_batch_id(batch_id)
    assert is_batch_id(webhook)
    assert is_webhook(webhook)
    assert webhook == webhook_batch_id(batch_id)
    assert not is_webhook(new_batch_id())
    assert not is_inbox_name("/webhooks")


@given(BATCH_IDS, st.integers(0, 2**40), st.integers(0, 2**53))
def test_a_webhook_is_the_same_however_often_it_is_made(batch_id: str, ended_ms: int, total: int) -> None:
    """A repeated step therefore enqueues nothing twice. The time has milliseconds and is in UTC."""
    first, again = (batch_ended("https://a.example/", batch_id, {"total": total}, ended_ms) for _ in range(2))
    assert first == again
    assert (first.sign, first.retry_unsafe, first.is_plain) == (True, True, False)
    assert f'"batch":"{batch_id}","total":{total}' in (first.body or "")
    assert '000Z"' in (batch_ended("https://a.example/", batch_id, {}, 1000).body or "")


@pytest.mark.parametrize("url", ["ftp://a.example/", "a.example", 7, "https://a.example/" + "x" * 2048])
def test_the_url_of_a_receiver_is_checked_as_that_of_a_fetch(url: str) -> None:
    """The error names the argument."""
    with pytest.raises(InvalidFetchError, match=r"^notify: "):
        notify_url(url)
