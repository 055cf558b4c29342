"""Skip marks for tests of the httpx engine alone."""

import pytest

from tools.one_worker import ENGINE

OF_HTTPX = {
    "component/observability/test_logs.py": {
        "test_at_info_level_no_event_hooks": "tests the hooks of httpx",
    },
    "component/observability/test_secret_leaks.py": {
        "test_an_internal_error_shows_no_secret": "the bug is injected into the httpx engine",
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
