"""An out folder that cannot be used: at the start of a command, or when it takes the place of another."""

import errno
import os
from pathlib import Path

import pytest

from fetchfleet.worker.errors import BAD_USE, FAILED, CommandError, InTheWayError
from fetchfleet.worker.sink.files.directory import PARTIAL_FILES, Directory, make_out, unusable_out


@pytest.mark.parametrize(
    ("name", "code", "said"),
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
def test_its_exit_code_tells_whether_another_start_may_help(name: str, code: int, said: str) -> None:
    """2 stops a process manager from trying again, 1 does not; folder and reason are named."""
    number = getattr(errno, name)
    error = unusable_out(Path("bodies"), OSError(number, os.strerror(number), "bodies/below"))

    assert (f"--out bodies: {said}", code) == (str(error), error.exit_code)


def test_a_link_in_the_place_of_a_folder_is_named() -> None:
    """As for bodies."""
    error = unusable_out(Path("bodies"), InTheWayError("'parts' is a symbolic link"))

    assert ("--out bodies: 'parts' is a symbolic link", BAD_USE) == (str(error), error.exit_code)


def test_it_is_made_with_the_folders_in_it(tmp_path: Path) -> None:
    """A second time it is used as it is."""
    for _ in range(2):
        make_out(tmp_path / "a/b", [PARTIAL_FILES])

    assert (tmp_path / "a/b" / PARTIAL_FILES).is_dir()


@pytest.mark.parametrize("refused", ["", PARTIAL_FILES])
def test_each_of_its_own_folders_must_take_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """By the word of the system, whatever the mode says; the reason is that of the system."""
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


def test_another_folder_takes_the_place_of_the_first_under_the_same_descriptor(tmp_path: Path) -> None:
    """Names given before, and those that a thread gives by what it has looked up, are below the old one."""
    directory, other = Directory(tmp_path / "out"), Directory(tmp_path / "out")
    directory.open()
    root, opening = directory.root, directory.opening
    with directory.held_open(60, lambda: 0.0) as held:
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
