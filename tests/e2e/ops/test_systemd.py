"""The systemd units: systemd accepts them, and their sandbox is tight."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fetchfleet.worker.settings import ENVIRONMENT, Settings

FOLDER = Path(__file__).parents[3] / "ops" / "systemd"
SERVICES = ("fetchfleet-worker@.service", "fetchfleet-serve.service")
MAX_EXPOSURE = 15
"""In tenths of the points of `systemd-analyze security`, of which an unconfined service has 96."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def values_of(service: str, key: str) -> list[str]:
    """Return the values of a key, in their order."""
    return re.findall(rf"^{key}=(.*)$", (FOLDER / service).read_text(), re.MULTILINE)


def analyze(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze in a folder."""
    return subprocess.run(
        ["systemd-analyze", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A copy of the units, with a command that exists, and with instance 1 of the worker."""
    for file in (*FOLDER.glob("*.service"), *FOLDER.glob("*.target")):
        text = file.read_text().replace("/opt/fetchfleet/bin/fetchfleet", "/bin/true")
        (tmp_path / file.name.replace("@.", "@1.")).write_text(text)
    return tmp_path


@needs_systemd
def test_systemd_accepts_the_units(units: Path) -> None:
    """No key is unknown, and no value is invalid."""
    names = sorted(file.name for file in units.iterdir())

    verified = analyze("verify", "--man=no", *(f"./{name}" for name in names), folder=units)

    assert ["fetchfleet-serve.service", "fetchfleet-worker@1.service", "fetchfleet.target"] == names
    assert (0, "", "") == (verified.returncode, verified.stdout, verified.stderr)


@needs_systemd
@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_confined(units: Path, service: str) -> None:
    """The exposure is at most 1.5 of 10 points."""
    name = f"./{service.replace('@.', '@1.')}"

    judged = analyze("security", "--offline=yes", f"--threshold={MAX_EXPOSURE}", name, folder=units)

    assert judged.returncode == 0, judged.stdout
    assert "Overall exposure level" in judged.stdout + judged.stderr


def test_the_services_have_one_sandbox() -> None:
    """The lines of the sandbox are equal, so a change to one is a change to the other."""
    [worker, serve] = [(FOLDER / service).read_text().partition("# Sandbox.")[2] for service in SERVICES]

    assert worker == serve
    assert "SystemCallFilter=" in worker


def test_systemd_waits_until_a_stopping_worker_has_returned_its_claims() -> None:
    """The stop timeout is longer than grace and lease together."""
    [timeout_s] = values_of(SERVICES[0], "TimeoutStopSec")

    assert Settings().grace_s + Settings().lease_s < float(timeout_s)


def test_a_worker_may_write_to_its_out_folder_and_to_nothing_else() -> None:
    """The folder of the example settings is the writable one."""
    [out] = re.findall(r"^FETCHFLEET_OUT=(.*)$", (FOLDER / "worker.env").read_text(), re.MULTILINE)

    assert ["strict"] == values_of(SERVICES[0], "ProtectSystem")
    assert [out] == values_of(SERVICES[0], "ReadWritePaths")


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.env")), ids=lambda file: file.name)
def test_every_variable_of_an_example_is_a_setting(file: Path) -> None:
    """Commented ones too."""
    names = re.findall(r"^#?(FETCHFLEET_\w+)=", file.read_text(), re.MULTILINE)

    assert names
    assert set() == set(names) - set(ENVIRONMENT.values())
