"""The command `serve` without its extra."""

import sys

import pytest
from typer.testing import CliRunner

from fetchfleet.worker.cli.app import app
from fetchfleet.worker.errors import BAD_USE, CommandError


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit code is 2."""
    monkeypatch.delitem(sys.modules, "fetchfleet.worker.console.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    ended = CliRunner().invoke(app, ["serve"])

    assert isinstance(ended.exception, CommandError)
    assert BAD_USE == ended.exception.exit_code
    assert "serve needs uvicorn: pip install 'fetchfleet[console]'" == str(ended.exception)
