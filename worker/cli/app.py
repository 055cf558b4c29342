"""The command line. Exit: 0 all stored, 1 some failed, 2 bad use, 130 interrupted."""

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from fetchfleet.worker.util import gc_freeze

_MODULES = {
    "run": "fetchfleet.worker.cli.run",
    "submit": "fetchfleet.worker.cli.submit",
    "worker": "fetchfleet.worker.cli.worker",
    "health": "fetchfleet.worker.cli.status",
    "status": "fetchfleet.worker.cli.status",
    "batches": "fetchfleet.worker.cli.status",
    "results": "fetchfleet.worker.cli.status",
    "cancel": "fetchfleet.worker.cli.status",
    "explain": "fetchfleet.worker.cli.policy",
    "pause": "fetchfleet.worker.cli.policy",
    "resume": "fetchfleet.worker.cli.policy",
    "dead": "fetchfleet.worker.cli.status",
    "policy": "fetchfleet.worker.cli.policy",
}
"""Where each command is, in the order in which they are shown."""


class _Commands(TyperGroup):
    """Imports a command when it is asked for: what all of them need takes longer than most of them do."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 typer's
        return list(_MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        # A name that is none of them may be likened to any of them.
        self._import([_MODULES[cmd_name]] if cmd_name in _MODULES else _MODULES.values())
        return super().get_command(ctx, cmd_name)

    def _import(self, modules: Iterable[str]) -> None:
        part = typer.Typer()
        for module in dict.fromkeys(modules):
            with gc_freeze.none_yet():
                found = import_module(module)
            found.register(part)
        self.commands.update(get_group(part).commands)


app = typer.Typer(
    name="fetchfleet",
    cls=_Commands,
    help="Bulk outbound fetching that never loses a job and never hammers an upstream.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _fleet() -> None:
    """For typer, which wants something to be there before a command is asked for."""


def main() -> None:
    """The `fetchfleet` command."""
    try:
        app()
    finally:
        gc_freeze.set_aside()  # it all goes at once now
