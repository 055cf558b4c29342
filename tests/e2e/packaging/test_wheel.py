"""The wheel holds all that an installed fetchfleet needs."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[3]


def test_the_wheel_has_the_scripts_and_the_schema(tmp_path: Path) -> None:
    """Beside every module: what Redis runs, and what other languages check their messages with."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    wanted = [path for room in ("jobs", "worker") for path in (ROOT / room).rglob("*.*")]
    names = {path.relative_to(ROOT).as_posix() for path in wanted if path.suffix in {".py", ".lua", ".json"}}

    assert set() == names - set(ZipFile(wheel).namelist())
