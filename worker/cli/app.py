"""The command line. Exit codes: 0 all stored, 1 some failed, 2 bad use, 3 Redis is away, 130 interrupted."""

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

_MODULES = {
    "run": "run",
    "submit": "submit",
    "worker": "run",
    "health": "status",
    "status": "status",
    "batches": "batches",
    "results": "batches",
    "cancel": "batches",
    "explain": "hosts",
    "pause": "hosts",
    "resume": "hosts",
    "reset": "hosts",
    "drain": "status",
    "undrain": "status",
    "dead": "batches",
    "policy": "policy",
    "acl": "users",
    "inbox": "users",
}
"""The module of each command, in the order in which help shows them."""


_GROUPS = {"dead", "policy", "inbox"}
"""The commands that have subcommands."""

_ARGUMENTS = "fetchfleet.arguments"


@contextmanager
def _safe_usage_errors() -> Iterator[None]:
    """Make arguments that an error of usage quotes safe to show."""
    try:
        yield
    except Exception as error:
        # Errors of usage have a message; their class is click's own or that of typer's copy.
        if isinstance(message := vars(error).get("message"), str):
            vars(error)["message"] = shown(message)
        raise


class _Commands(TyperGroup):
    """Imports the module of a command when it is needed; says which Redis user a refused one needs."""

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
            command = " ".join(arguments[: 2 if ctx.invoked_subcommand in _GROUPS else 1])
            denial.user = denial.user or permissions.user_of(arguments, os.environ)
            raise CommandError(permissions.explained(command, denial), error.exit_code) from error

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 the signature is typer's
        return list(_MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        # For an unknown command load all of them, so that typer can suggest matches.
        modules = [_MODULES[cmd_name]] if cmd_name in _MODULES else _MODULES.values()
        part = typer.Typer()
        for name in dict.fromkeys(modules):
            import_module(f"fetchfleet.worker.cli.{name}").register(part)
        self.commands.update(get_group(part).commands)
        return super().get_command(ctx, cmd_name)


app = typer.Typer(
    name="fetchfleet",
    cls=_Commands,
    help="Fetch URLs in bulk with a fleet of workers: no job is lost, no upstream is overloaded.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:  # noqa: FBT001 the signature is typer's
    if asked:
        typer.echo(f"fetchfleet {__version__}")
        raise typer.Exit


@app.callback()
def _fleet(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Without a callback typer takes an app without commands for an error."""


def main() -> NoReturn:
    """Run the `fetchfleet` command, and end the process without Python's own end.

    Python would free one module after the other, which takes as long as a hundred fetches.
    """
    os._exit(run_command())


def run_command() -> int:
    """Run the command that the arguments name; return its exit code."""
    gc.disable()  # imports make lasting objects; a command enables the collector when it starts to work
    from fetchfleet.worker.local.process import (  # noqa: PLC0415 after gc.disable
        discard_unwritable,
        open_standard_streams,
    )

    open_standard_streams()
    try:
        try:
            app()
        except OSError as error:  # without a name it is of --help: the commands name their files, and hosts
            raise CommandError(f"{error.filename or 'standard output'}: {error.strerror}") from error
    except SystemExit as end:
        return int(end.code or 0)
    except CommandError as error:
        from fetchfleet.worker.cli.common import console  # noqa: PLC0415 most commands have imported it

        console.print(str(error), style="red", soft_wrap=True)
        return error.exit_code
    except Exception:  # noqa: BLE001 a bug: its traceback is as safe to show as any other text
        import traceback  # noqa: PLC0415 no other end of a command needs it

        from fetchfleet.worker.cli.common import console  # noqa: PLC0415
        from fetchfleet.worker.observability import redact  # noqa: PLC0415

        for line in traceback.format_exc().splitlines():
            console.print(redact.text(line), soft_wrap=True)
        return FAILED
    finally:
        discard_unwritable()
    return 0
