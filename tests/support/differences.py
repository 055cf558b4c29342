"""Skip marks for tests that only the httpx engine passes, by the rows of "Engines" in docs/http.md."""

import pytest

from tools.one_worker import ENGINE

OF_HTTPX = {
    "test_canaries.py::test_a_bug_of_ours_shows_nothing": "the bug is put into httpx's engine",
    "test_egress.py::test_a_name_that_changes_is_vetted_again": "where a host is, is looked at once a second",
    "test_fetch.py::test_a_result_says_where_the_time_went": "connecting is not told apart",
    "test_heartbeat.py::test_connections_are_counted": "connections are not counted",
    "test_heartbeat.py::test_what_is_in_flight_is_told": "connections are not counted",
    "test_hostile_answers.py::test_a_post_on_an_idle": "what sends a body has connections of its own",
    "test_hostile_answers.py::test_a_put_on_an_idle": "what sends a body has connections of its own",
    "test_hostile_answers.py::test_an_answer_that_broke_off_in_its_head": "half a head is as none",
    "test_logs.py::test_at_debug_level_each_exchange": "whether a connection is used again is not told",
    "test_logs.py::test_at_info_level_an_exchange": "it is of httpx's hooks",
    "test_one_client.py": "it is of httpx's client",
    "test_soak.py": "connections are not counted",
    "test_timeouts.py::test_a_head_that_stalls": "the bound until a head has come is another",
    "test_timeouts.py::test_on_a_connection_that_is_used_again": "the bound until a head has come is another",
    "test_timeouts.py::test_a_wait_for_a_free_connection": "such a wait is not told apart",
    "test_tls.py::": "most of it is about ca_file; test_engines.py has what is not",
    "test_trickles.py::test_a_head_that_does_not_end": "a head may be as large as 400 KiB",
    "test_trickles.py::test_of_a_body_that_is_too_large": "pieces are as large as 400 KiB",
    "test_warc.py::test_a_head_is_recorded_as_it_was_sent": "a head is kept as reqwest reads it",
    "test_http2_streams.py": "it is of what is below httpx",
}


def skip(items: list[pytest.Item]) -> None:
    """Those of httpx alone, if the tests run on another engine."""
    if ENGINE == "httpx":
        return
    for item in items:
        for name, why in OF_HTTPX.items():
            if name in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=f"httpx alone: {why}"))
