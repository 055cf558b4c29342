"""The result of a fetch, made of its last outcome."""

from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from fetchfleet import Fetch, Outcome, Reason, Result
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.fetch import encode
from fetchfleet.jobs.contract.result import Timings, decode_result
from fetchfleet.worker.fetch.rules.decide import Finish
from fetchfleet.worker.fetch.rules.outcome import Failed, Interrupted
from fetchfleet.worker.fetch.rules.result import result_of
from fetchfleet.worker.observability import redact
from fetchfleet.worker.sink.index_entry import StoredBody

ENTRY = Entry(id="0123456789abcdef-00000000", deadline_ms=1, fetch=Fetch(url="http://a/"))
END = Finish(outcome=Outcome.FAILED, reason=Reason.READ)


def result_with(outcome: Failed | Interrupted, stand_in: StoredBody | None = None) -> Result:
    """Return the result of a failure, as a consumer reads it."""
    made = result_of(ENTRY, END, outcome, "http://a/", stand_in, Timings(), None, "one")
    return decode_result(encode(made))


SECRETS = st.text("aZ9~%@/?#&=' ", max_size=8).map("S3C{}RET".format)


@given(st.text(st.characters(codec="utf-8")), SECRETS)
def test_the_note_is_redacted_and_bounded(text: str, secret: str) -> None:
    """Whatever the error says, a consumer reads what the log has."""
    value = quote(secret, safe="")
    for note in (text, f"no http://a/?x_token={value} {text}", f"no http://u:{value}@a/ {text}"):
        for outcome in (Failed(reason=Reason.READ, note=note), Interrupted(note=note)):
            shown = result_with(outcome).note or ""

            assert shown == redact.text(note)
            assert len(shown) <= redact.MAX_TEXT_CHARS
            assert "S3C" not in shown


def test_a_stale_result_has_the_note_of_the_failure() -> None:
    """As its reason, it describes the problem of the host."""
    stored = StoredBody(path="a", size_bytes=1, sha256="")
    stale = result_with(Failed(reason=Reason.READ, note="a note"), stored)

    assert (True, Reason.READ, "a note") == (stale.stale, stale.reason, stale.note)


def test_a_client_of_an_older_version_reads_a_result_with_a_note() -> None:
    """Readers ignore unknown fields, as those of this version do."""
    text = encode(result_with(Failed(reason=Reason.READ, note="a note")))
    newer = text[:-1] + b',"unknown":{"a":1}}'

    assert decode_result(newer) == decode_result(text)
    assert b'"note":"a note"' in text
