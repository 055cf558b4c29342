"""The `fetchfleet` command, run in this process: for tests of its output, not of its startup."""

import io
import json
from typing import Any, NamedTuple

from typer.testing import CliRunner

from fetchfleet.worker.cli.app import app
from fetchfleet.worker.errors import CommandError
from fetchfleet.worker.local.output.progress import SafeConsole


class CommandResult(NamedTuple):
    """The outcome of a command."""

    exit_code: int
    output: str
    """The error message if the command failed."""


class Commands:
    """Runs commands on the fleet of one Redis. Unusable while an event loop runs in this thread."""

    def __init__(self, redis_url: str) -> None:
        self._environment = {"FETCHFLEET_REDIS_URL": redis_url, "COLUMNS": "200"}

    def invoke(self, *arguments: str) -> CommandResult:
        """Run a command that may fail."""
        result = CliRunner().invoke(app, arguments, env=self._environment)
        if isinstance(result.exception, CommandError):
            return CommandResult(result.exception.exit_code, str(result.exception))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return CommandResult(result.exit_code, result.output)

    def terminal_output(self, *arguments: str) -> str:
        """Return the text that the command writes to a terminal, whether it succeeds or not."""
        result = CliRunner().invoke(app, arguments, env=self._environment)
        errors = SafeConsole(file=io.StringIO())
        if isinstance(result.exception, CommandError):
            errors.print(str(result.exception))
        elif result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert isinstance(errors.file, io.StringIO)
        return result.output + errors.file.getvalue()

    def run(self, *arguments: str) -> str:
        """Run a command that must succeed; return its output."""
        result = self.invoke(*arguments)
        assert result.exit_code == 0, result
        return result.output

    def json(self, *arguments: str) -> Any:
        """Return the output of the command with --json, decoded."""
        return json.loads(self.run(*arguments, "--json"))
