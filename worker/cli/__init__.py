"""The commands of the command line. Only this room imports typer."""

from fetchfleet.worker.cli.app import main

__all__ = ["main"]
