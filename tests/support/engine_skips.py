"""Skip tests of the httpx engine when the suite runs on another engine."""

import pytest

from tools.one_worker import ENGINE

HTTPX_ONLY = {
    "component/observability/test_logs.py": {
        "test_at_info_level_no_event_hooks": "tests the hooks of httpx",
    },
    "component/observability/test_secret_leaks.py": {
        "test_an_internal_error_shows_no_secret": "the bug is injected into the httpx engine",
    },
}
"""The reason to skip a test on another engine, by its file and the prefix of its name."""


def skip_httpx_only(items: list[pytest.Item]) -> None:
    """Mark the tests of HTTPX_ONLY as skipped unless the run uses httpx."""
    if ENGINE == "httpx":
        return
    for item in items:
        file, _, name = item.nodeid.removeprefix("tests/").partition("::")
        for prefix, reason in HTTPX_ONLY.get(file, {}).items():
            if name.startswith(prefix):
                item.add_marker(pytest.mark.skip(reason=f"httpx only: {reason}"))
