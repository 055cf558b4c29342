"""The output files of a command: their errors are reported before the work begins."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from fetchfleet.worker.errors import BAD_USE, FAILED, CommandError
from fetchfleet.worker.local.output.output_files import (
    Outputs,
    ReportFile,
    check_distinct,
    check_outputs,
    check_writable,
)
from fetchfleet.worker.local.run import open_fetches
from tests.support.disks import mounted, remount


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing/report", "No such file or directory; make its folder first"),
        ("dangling/report", "No such file or directory; make its folder first"),
        ("folder", "Is a directory"),
        ("folder/", "Is a directory"),
        ("file/report", "Not a directory"),
        ("loop", "Too many levels of symbolic links"),
        ("x" * 300, "File name too long"),
        ("socket", "No such device or address"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_with_its_name_and_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, reason: str
) -> None:
    """The exit code means bad use of the option, and no file is created."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").touch()
    Path("dangling").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    os.mknod("socket", 0o140600)
    before = set(tmp_path.iterdir())

    with pytest.raises(CommandError) as refused:
        check_writable("--report", Path(path))

    assert (f"--report {Path(path)}: {reason}", BAD_USE) == (str(refused.value), refused.value.exit_code)
    assert before == set(tmp_path.iterdir())


def test_a_read_only_disk_is_refused(tmp_path: Path) -> None:
    """The check refuses an existing and a new file."""
    with mounted(tmp_path / "disk") as disk:
        (disk / "old").touch()
        remount(disk, "ro")
        for name in ("old", "new"):
            with pytest.raises(CommandError, match=rf"{name}: Read-only file system"):
                check_writable("--report", disk / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("kind", ["file", "pipe", "folder"])
def test_a_file_without_permission_is_refused(tmp_path: Path, kind: str) -> None:
    """A file, a pipe, or a new file in a folder."""
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path, 0o400)
    elif kind == "file":
        path.touch(0o400)
    else:
        path.mkdir(0o500)
        path /= "new"

    with pytest.raises(CommandError, match="Permission denied"):
        check_writable("--report", path)


def test_the_check_leaves_a_writable_file_unchanged(tmp_path: Path) -> None:
    """Old content stays until the work begins, and no new file remains. A pipe needs no reader."""
    (tmp_path / "old").write_text("kept")
    (tmp_path / "link").symlink_to("target")
    os.mkfifo(tmp_path / "pipe")
    for name in ("old", "new", "link", "pipe"):
        check_writable("--report", tmp_path / name)
    check_writable("--report", Path("/dev/null"))

    assert "kept" == (tmp_path / "old").read_text()
    assert {"old", "link", "pipe"} == {path.name for path in tmp_path.iterdir()}


def test_the_same_file_is_refused_for_two_purposes(tmp_path: Path) -> None:
    """It holds under any name. A device may serve several purposes."""
    (tmp_path / "list").touch()
    (tmp_path / "alias").symlink_to("list")
    with pytest.raises(CommandError, match="FILE and --report are the same file"):
        check_distinct({"FILE": tmp_path / "list", "--report": tmp_path / "alias"})
    with pytest.raises(CommandError, match="--report and --lines-to are the same file"):
        check_distinct({"FILE": None, "--report": tmp_path / "new", "--lines-to": tmp_path / "x/../new"})
    null = Path(os.devnull)
    check_distinct({"FILE": tmp_path / "list", "--report": null, "--lines-to": null})


def test_the_future_out_folder_is_not_an_output_file(tmp_path: Path) -> None:
    """A report at its path would make the run fail at its end."""
    outputs = Outputs(Console, report=tmp_path / "out", out=tmp_path / "x" / ".." / "out")
    with pytest.raises(CommandError, match="--out and --report are the same file"):
        check_outputs("-", outputs)


def test_an_impossible_file_name_is_refused_with_its_option(tmp_path: Path) -> None:
    """The error does not concern standard output."""
    with pytest.raises(CommandError, match=r"--report .*: File name too long"):
        check_outputs("-", Outputs(Console, report=tmp_path / ("x" * 300)))


def test_a_list_without_a_valid_line_names_its_rejects(tmp_path: Path) -> None:
    """A list without lines is another error."""
    (tmp_path / "list").write_text("htp://a\nhtp://b\n")
    outputs = Outputs(Console, rejects=tmp_path / "rejects")
    with pytest.raises(CommandError, match=r"every line is invalid; see .*rejects"):
        open_fetches(str(tmp_path / "list"), None, outputs)
    assert (tmp_path / "rejects").read_text().count("not an http or https URL") == 2


def report_to(path: Path, size_bytes: int, *, flush: bool = False, error: Exception | None = None) -> None:
    """Write one line of that size, then raise the error."""
    with ReportFile(path, append=False) as report:
        report.add(b"x" * size_bytes)
        if flush:
            report.flush()
        if error is not None:
            raise error


@pytest.mark.parametrize(("size_bytes", "flush"), [(1, False), (1, True), (1_000_000, False)])
def test_a_report_that_cannot_be_written_is_named(size_bytes: int, *, flush: bool) -> None:
    """The error may come at the write of a line, at a flush, or at the end."""
    with pytest.raises(CommandError, match="--report /dev/full: No space left") as raised:
        report_to(Path("/dev/full"), size_bytes, flush=flush)
    assert FAILED == raised.value.exit_code


def test_a_report_that_was_removed_is_named(tmp_path: Path) -> None:
    """A report that was moved away, as by log rotation, has its lines."""
    path, moved = tmp_path / "report", tmp_path / "report.1"
    with ReportFile(path, append=False) as report:
        path.rename(moved)
        report.add(b"line\n")
    assert b"line\n" == moved.read_bytes()
    with pytest.raises(CommandError, match="report: the file was removed during the run") as raised:
        report_then(path, path.unlink)
    assert FAILED == raised.value.exit_code


def report_then(path: Path, then: Callable[[], None]) -> None:
    """Write a line, then call the function."""
    with ReportFile(path, append=False) as report:
        report.add(b"line\n")
        then()


def test_the_first_error_is_raised_before_one_of_the_report() -> None:
    """It occurred first."""
    with pytest.raises(KeyError):
        report_to(Path("/dev/full"), 1, error=KeyError())


def test_a_report_is_truncated_or_continued(tmp_path: Path) -> None:
    """A run that starts truncates it, and one that continues appends to it."""
    for append in (False, True, False):
        with ReportFile(tmp_path / "report", append=append) as report:
            report.add(b"line\n")
            report.flush()
        assert (2 if append else 1) == len((tmp_path / "report").read_text().splitlines())
