"""The commands. The only room that imports typer."""

from fetchfleet.worker.cli.app import main

__all__ = ["main"]
