"""The command line. Exit: 0 all stored, 1 some failed, 2 bad use, 130 interrupted."""

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from worker import garbage

_MODULES = {
    "run": "worker.running",
    "submit": "worker.listing",
    "worker": "worker.serving",
    "health": "worker.operate",
    "status": "worker.operate",
    "batches": "worker.operate",
    "results": "worker.operate",
    "cancel": "worker.operate",
    "explain": "worker.steer",
    "pause": "worker.steer",
    "resume": "worker.steer",
    "dead": "worker.operate",
    "policy": "worker.steer",
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
            with garbage.none_yet():
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
        garbage.set_aside()  # it all goes at once now
