"""Skip marks for tests that only the httpx engine passes, by the rows of "Engines" in docs/http.md."""

import pytest

from tools.one_worker import ENGINE

ALL = ""
_CONNECTIONS = "the engine does not count connections"
_UPLOADS = "requests with a body use connections of their own"
_TIMEOUT = "the timeout before the response header differs"

OF_HTTPX = {
    "component/body/test_trickles.py": {
        "test_a_head_that_does_not_end": "a response header may have up to 400 KiB",
        "test_of_a_body_that_is_too_large": "the engine reads up to 400 KiB at once",
    },
    "component/fetch/test_fetch.py": {
        "test_a_result_says_where_the_time_went": "the engine does not report the time to connect",
    },
    "component/http/test_egress.py": {
        "test_a_name_that_changes_is_vetted_again": "the engine resolves a host once a second",
    },
    "component/http/test_hostile_responses.py": {
        "test_a_post_on_an_idle": _UPLOADS,
        "test_a_put_on_an_idle": _UPLOADS,
        "test_an_answer_that_broke_off_in_its_head": "half a response header counts as none",
    },
    "component/http/test_http2_streams.py": {ALL: "tests the layers below httpx"},
    "component/http/test_one_client.py": {ALL: "tests the httpx client"},
    "component/http/test_timeouts.py": {
        "test_a_head_that_stalls": _TIMEOUT,
        "test_on_a_connection_that_is_used_again": _TIMEOUT,
        "test_a_wait_for_a_free_connection": "the engine does not report such a wait",
    },
    "component/http/test_response_heads.py": {
        "test_a_redirect_leads_where": "a field that is not ASCII counts as absent",
        "test_odd_fields_keep": "an odd field line is refused",
    },
    "component/http/test_tls.py": {ALL: "mostly about ca_file; component/http/test_engines.py has the rest"},
    "component/observability/test_logs.py": {
        "test_at_debug_level_each_exchange": "the engine does not report reused connections",
        "test_at_info_level_an_exchange": "tests the hooks of httpx",
    },
    "component/observability/test_secret_leaks.py": {
        "test_a_bug_of_ours_shows_nothing": "the bug is injected into the httpx engine",
    },
    "component/runtime/test_soak.py": {ALL: _CONNECTIONS},
    "component/runtime/test_stats.py": {
        "test_connections_are_counted": _CONNECTIONS,
        "test_what_is_in_flight_is_told": _CONNECTIONS,
    },
    "component/sink/test_warc.py": {
        "test_a_head_is_recorded_as_it_was_sent": "the engine does not keep the header's bytes",
    },
}
"""The reason to skip a test on another engine, by its file and the prefix of its name."""


def skip(items: list[pytest.Item]) -> None:
    """Skip the tests that need httpx if the run uses another engine."""
    if ENGINE == "httpx":
        return
    for item in items:
        file, _, name = item.nodeid.removeprefix("tests/").partition("::")
        for prefix, why in OF_HTTPX.get(file, {}).items():
            if name.startswith(prefix):
                item.add_marker(pytest.mark.skip(reason=f"httpx only: {why}"))
