"""The `fetchfleet` command, run in this process: for tests of what it says, not of how it starts."""

import io
import json
from typing import Any, NamedTuple

from typer.testing import CliRunner

from fetchfleet.worker.cli.app import app
from fetchfleet.worker.errors import CommandError
from fetchfleet.worker.local.progress import Screen


class Said(NamedTuple):
    """The exit code of a command and what it printed; the error message if it failed."""

    code: int
    text: str


class Commands:
    """Gives commands to the fleet behind one Redis. Not to be used while a loop runs in this thread."""

    def __init__(self, redis_url: str) -> None:
        self._environment = {"FETCHFLEET_REDIS_URL": redis_url, "COLUMNS": "200"}

    def asks(self, *arguments: str) -> Said:
        """Return what the command says."""
        result = CliRunner().invoke(app, arguments, env=self._environment)
        if isinstance(result.exception, CommandError):
            return Said(result.exception.exit_code, str(result.exception))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Said(result.exit_code, result.output)

    def prints(self, *arguments: str) -> str:
        """Return what a terminal gets of the command, whether it succeeds or not."""
        result = CliRunner().invoke(app, arguments, env=self._environment)
        errors = Screen(file=io.StringIO())
        if isinstance(result.exception, CommandError):
            errors.print(str(result.exception))
        elif result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert isinstance(errors.file, io.StringIO)
        return result.output + errors.file.getvalue()

    def does(self, *arguments: str) -> str:
        """Return what the command says; it must succeed."""
        said = self.asks(*arguments)
        assert said.code == 0, said
        return said.text

    def reads(self, *arguments: str) -> Any:
        """Return the JSON that the command prints with --json."""
        return json.loads(self.does(*arguments, "--json"))
