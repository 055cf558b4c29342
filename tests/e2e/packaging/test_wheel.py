"""The wheel: complete, one package, and usable beside packages called jobs and worker."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[3]
PACKAGED = {".py", ".lua", ".json", ".html", ".css", ".js", ".svg"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_has_every_module_script_schema_and_page(wheel: Path) -> None:
    """It also has py.typed, the marker for type checkers."""
    wanted = [path for room in ("jobs", "worker") for path in (ROOT / room).rglob("*")]
    names = {
        f"fetchfleet/{path.relative_to(ROOT).as_posix()}"
        for path in wanted
        if path.suffix in {".py", ".lua", ".json", ".html", ".css", ".js", ".svg"}
        and "__pycache__" not in path.parts
    }

    assert set() == names - _files_in(wheel)
    assert "fetchfleet/worker/console/templates/base.html" in names
    assert "fetchfleet/py.typed" in _files_in(wheel)


def test_the_wheel_installs_one_package(wheel: Path) -> None:
    """It adds no top-level jobs or worker to site-packages."""
    roots = {name.partition("/")[0] for name in _files_in(wheel)}

    assert {"fetchfleet"} == {name for name in roots if not name.endswith(".dist-info")}


def test_an_installed_fetchfleet_works_beside_other_jobs_and_worker_packages(
    wheel: Path, tmp_path: Path
) -> None:
    """Installed into an empty environment, and used from a project that has packages of these names."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    env = tmp_path / "env" / "bin"
    install = [str(env / "python"), "-m", "pip", "install", "-q", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(install, check=True)
    project = tmp_path / "project"
    for package in ("jobs", "worker"):
        (project / package).mkdir(parents=True)
        (project / package / "__init__.py").write_text(f"NAME = 'the project''s own {package}'\n")
    (project / "use.py").write_text(
        "import jobs, worker\n"
        "from fetchfleet import Fetch, Fleet\n"
        "from fetchfleet.worker.main import WorkerSettings\n"
        "url = Fetch(url='http://a.example').url\n"
        "print(jobs.NAME, worker.NAME, url, WorkerSettings.queue_name, sep='|')\n"
        "import fetchfleet; print(fetchfleet.__file__)\n"
    )
    # The dependencies come from this environment; its own fetchfleet is editable and not among them.
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), "FETCHFLEET_OUT": str(tmp_path)}

    used = _run([str(env / "python"), "use.py"], project, environment)
    helped = _run([str(env / "fetchfleet"), "--help"], project, environment)

    printed, file = used.splitlines()
    assert "the projects own jobs|the projects own worker|http://a.example/|ff:queue" == printed
    assert Path(file).is_relative_to(tmp_path / "env")
    assert "submit" in helped


def _files_in(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert 0 == ended.returncode, ended.stderr
    return ended.stdout
