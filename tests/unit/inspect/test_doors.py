"""The number of fetches in a message or an arq job."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.jobs.contract.messages import read_arguments, read_message
from fetchfleet.worker.inspect.doors import CountedJob, fetches_in_job, fetches_in_message

ITEMS = st.lists(st.sampled_from(["http://a.example/", {"url": "http://a.example/", "headers": {}}]))


@given(ITEMS)
def test_the_count_equals_the_fetches_that_a_worker_enqueues(items: list[object]) -> None:
    """The count follows the rules of each door."""
    message = msgspec.json.encode({"fetches": items})
    job = msgspec.json.encode({"t": None, "f": "fetch", "a": [items], "k": {}, "et": 5})

    assert len(read_message(message).fetches) == fetches_in_message(message)
    assert CountedJob(len(read_arguments(items).fetches), 5) == fetches_in_job(job)


@pytest.mark.parametrize(
    "message",
    [
        *(b"http://a.example/", b'{"url": "http://a.example/"}', b" {", b"", b"\xff", b"[1]", b"[" * 100_000),
        *(b'{"fetches": 3}', b'{"fetches": null}', b"\x80\x04."),
    ],
)
def test_a_message_without_a_list_counts_as_one(message: bytes) -> None:
    """It is a fetch, or one dead letter."""
    assert 1 == fetches_in_message(message)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"f": "fetch", "a": ["http://a.example/"], "et": 7}', CountedJob(1, 7)),
        (b'{"f": "fetch", "a": [ [1, 2] ], "k": {}, "et": 7}', CountedJob(2, 7)),
        (b'{"f": "fetch", "a": [], "et": 7}', CountedJob(1, 7)),
        (b'{"f": "other", "a": [[1, 2]], "et": 7}', CountedJob(1, 7)),
        (b'{"f": "fetch", "a": [[1, 2]]}', CountedJob(2, 0)),
        (b'{"f": "fetch", "a": [[1, 2]], "et": "soon"}', CountedJob(1, 0)),
        (b'{"f": "fetch", "a": [[1, 2]], "et": -7}', CountedJob(2, 0)),
        (b"\x80\x04", CountedJob(1, 0)),
        (b"[" * 100_000, CountedJob(1, 0)),
    ],
)
def test_a_job_counts_the_list_in_its_first_argument(raw: bytes, expected: CountedJob) -> None:
    """An invalid job is one dead letter."""
    assert expected == fetches_in_job(raw)
