"""An unusable out folder: at the start of a command, or in place of another folder."""

import errno
import os
from pathlib import Path

import pytest

from fetchfleet.worker.errors import BAD_USE, FAILED, CommandError, InTheWayError
from fetchfleet.worker.sink.files.directory import PARTIAL_FILES, Directory, make_out, unusable_out


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("EACCES", BAD_USE, "Permission denied"),
        ("EPERM", BAD_USE, "Operation not permitted"),
        ("ENOTDIR", BAD_USE, "Not a directory"),
        ("ENAMETOOLONG", BAD_USE, "File name too long"),
        ("ENOENT", BAD_USE, "No such file or directory"),
        ("EEXIST", BAD_USE, "is not a folder"),
        ("EROFS", FAILED, "Read-only file system"),
        ("EIO", FAILED, "Input/output error"),
        ("ESTALE", FAILED, "Stale file handle"),
        ("ENOSPC", FAILED, "No space left on device"),
    ],
)
def test_the_exit_code_depends_on_the_chance_of_another_start(name: str, code: int, message: str) -> None:
    """2 stops a process manager, 1 does not. Folder and reason are named."""
    number = getattr(errno, name)
    error = unusable_out(Path("bodies"), OSError(number, os.strerror(number), "bodies/below"))

    assert (f"--out bodies: {message}", code) == (str(error), error.exit_code)


def test_a_link_in_the_place_of_a_folder_is_named() -> None:
    """The message is that for bodies."""
    error = unusable_out(Path("bodies"), InTheWayError("'parts' is a symbolic link"))

    assert ("--out bodies: 'parts' is a symbolic link", BAD_USE) == (str(error), error.exit_code)


def test_the_out_folder_is_created_with_its_subfolders(tmp_path: Path) -> None:
    """A second call uses it as it is."""
    for _ in range(2):
        make_out(tmp_path / "a/b", [PARTIAL_FILES])

    assert (tmp_path / "a/b" / PARTIAL_FILES).is_dir()


@pytest.mark.parametrize("refused", ["", PARTIAL_FILES])
def test_each_subfolder_must_be_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """The check tries each folder, whatever its mode, and reports the reason of the system."""
    make_out(tmp_path, [PARTIAL_FILES])
    folder = (tmp_path / refused).resolve()
    access, mkdir = os.access, os.mkdir

    def is_refused(dir_fd: int | None) -> bool:
        return dir_fd is not None and Path(f"/proc/self/fd/{dir_fd}").readlink() == folder

    def may(path: str, mode: int, *, dir_fd: int | None = None) -> bool:
        return not is_refused(dir_fd) and access(path, mode, dir_fd=dir_fd)

    def make(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if is_refused(dir_fd):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        mkdir(path, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "access", may)
    monkeypatch.setattr(os, "mkdir", make)

    with pytest.raises(CommandError, match="Operation not permitted"):
        make_out(tmp_path, [PARTIAL_FILES])


def test_another_folder_replaces_the_first_under_the_same_descriptor(tmp_path: Path) -> None:
    """A file that was created before is in the old folder, and cannot be confirmed."""
    directory, other = Directory(tmp_path / "out"), Directory(tmp_path / "out")
    directory.open()
    root, opening = directory.root, directory.opening
    with directory.cached_view(60, lambda: 0.0) as held:
        os.close(held.create("old"))
        held.confirm(opening)
        (tmp_path / "out").rename(tmp_path / "moved")
        assert not directory.in_place()
        with pytest.raises(OSError, match="was moved"):
            held.confirm(opening)

        other.open()
        directory.replace_by(other)
        other.close()
        os.close(held.create("new"))
        assert directory.in_place()
        held.confirm(held.opening)
        with pytest.raises(OSError, match="was moved"):
            held.confirm(opening)

    assert root == directory.root
    assert ["new"] == [path.name for path in (tmp_path / "out" / PARTIAL_FILES).iterdir()]
    assert ["old"] == [path.name for path in (tmp_path / "moved" / PARTIAL_FILES).iterdir()]
    assert not os.get_inheritable(root)
    directory.close()
