"""The command line: its commands, its errors and its exit codes (docs/configuration.md)."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_group

from fetchfleet import __version__
from fetchfleet.jobs.contract.safe_text import shown
from fetchfleet.worker.errors import FAILED, CommandError

_PANELS = {
    "Fetch": {"run": "run", "submit": "submit", "worker": "run"},
    "Follow a fleet": {
        "status": "status",
        "batches": "batches",
        "results": "batches",
        "export": "files.export",
        "wacz": "files.wacz",
        "explain": "hosts",
        "health": "status",
        "events": "live.events",
        "top": "live.top",
    },
    "Control a fleet": {
        "cancel": "batches",
        "dead": "batches",
        "pause": "hosts",
        "resume": "hosts",
        "reset": "hosts",
        "policy": "policy",
        "drain": "status",
        "undrain": "status",
    },
    "Serve": {"serve": "serve"},
    "Set up Redis": {"acl": "users", "inbox": "users"},
}
"""The modules of the commands, by the headings under which help shows them."""

_MODULES = {command: module for modules in _PANELS.values() for command, module in modules.items()}

_WITH_SUBCOMMANDS = {"dead", "policy", "inbox"}

_ARGUMENTS = "fetchfleet.arguments"


@contextmanager
def _safe_usage_errors() -> Iterator[None]:
    """Escape the arguments that a usage error quotes, so that they are safe to print."""
    try:
        yield
    except Exception as error:
        # A usage error has a message; its class is click's own or that of typer's copy.
        if isinstance(message := vars(error).get("message"), str):
            vars(error)["message"] = shown(message)
        raise


class _Commands(TyperGroup):
    """The commands. A command's module is imported when the command is needed.

    If Redis denies a command, the error names the Redis user that has the right.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = [*args]
        with _safe_usage_errors():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _safe_usage_errors():
                return super().invoke(ctx)
        except CommandError as error:
            from fetchfleet.worker.redis_support import permissions  # noqa: PLC0415 most commands need none

            if (denial := permissions.denial_in(error)) is None:
                raise
            arguments = ctx.meta[_ARGUMENTS]
            command = " ".join(arguments[: 2 if ctx.invoked_subcommand in _WITH_SUBCOMMANDS else 1])
            denial.user = denial.user or permissions.user_of(arguments, os.environ)
            raise CommandError(permissions.explained(command, denial), error.exit_code) from error

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 the signature is typer's
        return list(_MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        # For an unknown command load all of them, so that typer can suggest matches.
        modules = [_MODULES[cmd_name]] if cmd_name in _MODULES else _MODULES.values()
        loaded = typer.Typer()
        for name in dict.fromkeys(modules):
            import_module(f"fetchfleet.worker.cli.{name}").register(loaded)
        self.commands.update(get_group(loaded).commands)
        for panel, names in _PANELS.items():
            for name in names.keys() & self.commands.keys():
                vars(self.commands[name])["rich_help_panel"] = panel
        return super().get_command(ctx, cmd_name)


app = typer.Typer(
    name="fetchfleet",
    cls=_Commands,
    help="Fetch URLs in bulk with a fleet of workers: no fetch is lost, and no host is overloaded.",
    epilog="Example: fetchfleet run urls.txt --out bodies --report results.jsonl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(given: bool) -> None:  # noqa: FBT001 the signature is typer's
    if given:
        typer.echo(f"fetchfleet {__version__}")
        raise typer.Exit


@app.callback()
def _fleet(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Hold the option `--version`; without a callback, typer refuses an app that declares no command."""


def main() -> NoReturn:
    """Run the `fetchfleet` command and exit at once.

    Python's own finalization frees module by module, which takes as long as a hundred fetches. Before Python
    3.14 it also aborts the process if a thread of obstore reports a request meanwhile.
    """
    os._exit(run_command())


def run_command() -> int:
    """Run the command that the arguments name, and return its exit code."""
    gc.disable()  # see gc_freeze
    from fetchfleet.worker.local.process import (  # noqa: PLC0415 after gc.disable
        discard_unwritable,
        open_standard_streams,
    )

    open_standard_streams()
    try:
        try:
            app()
        except OSError as error:
            # Commands name the file or host in their errors. Without a name it is an error of --help.
            raise CommandError(f"{error.filename or 'standard output'}: {error.strerror}") from error
    except SystemExit as end:
        return int(end.code or 0)
    except CommandError as error:
        from fetchfleet.worker.cli.common import console  # noqa: PLC0415 slow, and needed for errors only

        console.print(str(error), style="red", soft_wrap=True)
        return error.exit_code
    except Exception:  # noqa: BLE001 a bug: its traceback is printed without secrets
        import traceback  # noqa: PLC0415

        from fetchfleet.worker.cli.common import console  # noqa: PLC0415
        from fetchfleet.worker.observability import redact  # noqa: PLC0415

        for line in traceback.format_exc().splitlines():
            console.print(redact.text(line), soft_wrap=True)
        return FAILED
    finally:
        discard_unwritable()
    return 0
