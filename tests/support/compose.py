"""docker-compose.yml as a person would drive it: by whichever Compose is installed."""

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

Ended = subprocess.CompletedProcess[str]


@cache
def command() -> tuple[str, ...] | None:
    """How Compose is called here: version 2, else version 1, else not at all."""
    if shutil.which("docker") and _run(("docker", "compose", "version")).returncode == 0:
        return ("docker", "compose")
    return ("docker-compose",) if shutil.which("docker-compose") else None


def docker(*arguments: str) -> str:
    """What docker says; RuntimeError when it fails."""
    return _said(_run(("docker", *arguments)))


class Project:
    """The compose file under a name of its own, with the variables of a file and no others."""

    def __init__(self, name: str, env_file: Path) -> None:
        program = command()
        assert program is not None, "there is no Compose here"
        self._command = (*program, "--project-name", name, "--file", str(FILE), "--env-file", str(env_file))

    def run(self, *arguments: str) -> Ended:
        """How the command ends."""
        return _run((*self._command, *arguments))

    def said(self, *arguments: str) -> str:
        """What the command says; RuntimeError when it fails."""
        return _said(self.run(*arguments))

    def containers(self, service: str) -> list[str]:
        """The ids of the service's containers, of those that have ended too."""
        return self.said("ps", "--all", "--quiet", service).split()


def _run(words: Sequence[str]) -> Ended:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(VARIABLES)}
    return subprocess.run(
        words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S, check=False
    )


def _said(ended: Ended) -> str:
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(ended.args)} ended with {ended.returncode}: {ended.stderr}")
    return ended.stdout
