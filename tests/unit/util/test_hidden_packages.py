"""Packages that libraries do without if they are hidden from them."""

import importlib
import subprocess
import sys

import pytest

from fetchfleet.worker.util.hidden_packages import hidden

PRETTY = """
import io, sys
from fetchfleet.worker.observability import log
stream = io.StringIO()
log.configure(stream, pretty=True)
log.get_logger(worker="w-1").info("worker.started", lanes=3)
print(*(part in stream.getvalue() for part in ("worker.started", "w-1", "lanes")), "rich" in sys.modules)
"""


def test_lines_for_reading_need_no_rich() -> None:
    """Structlog formats them itself; its tracebacks alone would need rich."""
    printed = subprocess.run([sys.executable, "-c", PRETTY], capture_output=True, text=True, check=True)

    assert "True True True False" == printed.stdout.strip()


def test_a_hidden_package_cannot_be_imported_and_is_the_same_afterwards() -> None:
    """A package that was imported before stays imported; another one can be imported after the block."""
    before = importlib.import_module("rich")
    with hidden("rich"), pytest.raises(ImportError):
        importlib.import_module("rich")

    assert importlib.import_module("rich") is before


def test_a_package_that_was_not_imported_can_be_imported_after_it_was_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The block leaves no entry in sys.modules."""
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with hidden("this"):
        pass

    assert "this" not in sys.modules
