"""Run docker-compose.yml with the installed Compose."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
VARIABLES = ("COMPOSE_", "FETCHFLEET_")
WITHIN_S = 600.0

Completed = subprocess.CompletedProcess[str]


@cache
def command() -> tuple[str, ...] | None:
    """Return the command of Compose: version 2, else version 1, else None."""
    if shutil.which("docker") and _run(("docker", "compose", "version")).returncode == 0:
        return ("docker", "compose")
    return ("docker-compose",) if shutil.which("docker-compose") else None


def docker(*arguments: str) -> str:
    """Return the output of docker; raise RuntimeError if it fails."""
    return _output_of(_run(("docker", *arguments)))


class Project:
    """A Compose project with its own name and only the variables of an env file."""

    def __init__(self, name: str, env_file: Path) -> None:
        program = command()
        assert program is not None, "Compose is not installed"
        self._command = (*program, "--project-name", name, "--file", str(FILE), "--env-file", str(env_file))

    def run(self, *arguments: str) -> Completed:
        """Run a command."""
        return _run((*self._command, *arguments))

    def output(self, *arguments: str) -> str:
        """Return the output of a command; raise RuntimeError if it fails."""
        return _output_of(self.run(*arguments))

    def containers(self, service: str) -> list[str]:
        """Return the ids of the service's containers, stopped ones included."""
        return self.output("ps", "--all", "--quiet", service).split()


def _run(words: Sequence[str]) -> Completed:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(VARIABLES)}
    return subprocess.run(
        words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S, check=False
    )


def _output_of(completed: Completed) -> str:
    if completed.returncode != 0:
        raise RuntimeError(
            f"{' '.join(completed.args)} exited with {completed.returncode}: {completed.stderr}"
        )
    return completed.stdout
