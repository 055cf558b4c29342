"""File operations below the out folder, by descriptor, so that no symbolic link leads out of it.

Each lookup starts at the out folder's descriptor and opens one folder after the other, none of them `..`. The
descriptors of inner folders are closed soon: if such a folder is moved away, later bodies must not follow it.
The out folder itself may be moved too. `confirm` detects that after a body has its final name.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from fetchfleet.worker.errors import BAD_USE, FAILED, CommandError, ExistsError, InTheWayError
from fetchfleet.worker.util.clock import mono_s
from fetchfleet.worker.util.file_errors import FileFault, fault_of

STATE_FOLDER = ".fetchfleet"
"""The folder of a run's Redis data, the workers' logs, the partial files and the index."""

PARTIAL_FILES = f"{STATE_FOLDER}/parts"
REDIS_FOLDER = f"{STATE_FOLDER}/redis"
WARC_FOLDER = "warc"
TRIAL_FOLDER = ".fetchfleet-trial"

_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_UNNAMED = os.O_WRONLY | getattr(os, "O_TMPFILE", 0)
_OPEN_FILES = "/proc/self/fd"
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL})
"""Errors of file systems and kernels without O_TMPFILE."""

_NOT_A_FOLDER = frozenset({errno.ELOOP, errno.ENOTDIR})
_KINDS = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFREG: "a file"}
_NO_NAMES = frozenset({"", ".", ".."})


class Directory:
    """The out folder, held open from open() to close(), and the files below it. Thread-safe.

    Methods with a path raise OSError, and InTheWayError if a part of the path is a link or of the wrong kind.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._root = -1
        self._opened: tuple[int, int] | None = None
        """Inode and device of the open out folder."""
        self.opening = 0
        """Counts how often another out folder has replaced the open one."""
        self.displaced = False
        """The out folder's path led to another folder or to none at the last check, and was not opened."""
        self._supports_unnamed = hasattr(os, "O_TMPFILE")

    def open(self, *, make: bool = True) -> None:
        """Open the out folder; its path may be a symbolic link. make: create it if it is missing."""
        self.close()
        if make:
            self._out.mkdir(parents=True, exist_ok=True)
        self._root = os.open(self._out, _FOLDER)
        self._supports_unnamed &= Path(_OPEN_FILES).is_dir()
        self._opened = _identity(os.fstat(self._root))

    def close(self) -> None:
        """Close the out folder. A second call does nothing."""
        if self._root >= 0:
            root, self._root = self._root, -1
            os.close(root)

    def in_place(self) -> bool:
        """Return whether the out folder's path still leads to the open folder."""
        try:
            return self._opened == _identity(os.stat(self._out))  # noqa: PTH116 - a third of the cost
        except OSError:
            return False

    def confirm(self, opening: int) -> None:
        """Raise OSError if the out folder was moved or replaced after the caller read `opening`."""
        if not self.in_place() or opening != self.opening:
            raise self.out_of_place()

    def out_of_place(self) -> OSError:
        """Return the error for a body in a folder that is no longer the out folder."""
        return OSError(errno.ESTALE, f"{self._out} was moved, removed or replaced")

    def replace_by(self, other: "Directory") -> None:
        """Open the other directory's folder under the same descriptor, which threads may be using."""
        os.dup2(other.root, self.root, inheritable=False)
        self.opening += 1  # before `_opened`, which `confirm` reads first
        self._opened, self.displaced = _identity(os.fstat(self.root)), False

    @property
    def root(self) -> int:
        """The descriptor of the out folder. Raises OSError if it is not open."""
        if self._root < 0:
            raise OSError(errno.EBADF, f"{self._out} is not open")
        return self._root

    @contextmanager
    def chain(self, path: str, *, make: bool = True) -> Iterator[list[int]]:
        """Yield the descriptors from the out folder to the folder `path`. make: create missing folders."""
        chain = self._look_up(path, make=make)
        try:
            yield chain
        finally:
            self._release(chain)

    def _look_up(self, path: str, *, make: bool = True) -> list[int]:
        chain = [self.root]
        try:
            for name in path.split("/") if path else ():
                try:
                    folder = _open_folder(chain[-1], name, path)
                except FileNotFoundError:
                    if not make:
                        raise
                    _make_folder(self.root, chain[-1], name, path)
                    folder = _open_folder(chain[-1], name, path)
                chain.append(folder)
        except BaseException:
            Directory._release(self, chain)  # a cached view does not keep an incomplete chain
            raise
        return chain

    def _release(self, chain: list[int]) -> None:
        for folder in reversed(chain[1:]):  # the first is the out folder
            os.close(folder)

    def check_permission(self, folders: Iterable[str]) -> None:
        """Raise OSError if no file can be created in one of the folders: permissions, attributes or mount."""
        for path in folders:
            with self.chain(path) as chain:
                if not os.access(".", os.W_OK | os.X_OK, dir_fd=chain[-1]):
                    os.mkdir(TRIAL_FOLDER, dir_fd=chain[-1])  # raises the error that access(2) does not give
                    os.rmdir(TRIAL_FOLDER, dir_fd=chain[-1])

    def cached_view(self, reuse_s: float, clock: Callable[[], float] = mono_s) -> "_CachedView":
        """Return a view of this directory for one thread, which reuses folder descriptors for `reuse_s`."""
        return _CachedView(self, self._out, reuse_s, clock)

    def create(self, partial: str) -> int:
        """Create an empty partial file and return its descriptor, for writing. Replaces an existing one."""
        with self.chain(PARTIAL_FILES) as chain:
            with suppress(FileExistsError):
                return os.open(_checked(partial), _NEW_FILE, 0o666, dir_fd=chain[-1])
            _require_regular_file(chain[-1], partial, f"{PARTIAL_FILES}/{partial}")
            os.unlink(partial, dir_fd=chain[-1])
            return os.open(partial, _NEW_FILE, 0o666, dir_fd=chain[-1])

    def create_unnamed(self) -> int | None:
        """Create an empty file without a name, for writing; None if the disk does not support it."""
        if not self._supports_unnamed:
            return None
        try:
            return os.open(".", _UNNAMED, 0o666, dir_fd=self._root)
        except OSError as error:
            self._supports_unnamed = error.errno not in _UNSUPPORTED
            return None

    def name(self, file: int, path: str) -> bool:
        """Give an unnamed file its name, atomically. Returns False on an error, e.g. if the name exists."""
        folder, _, name = path.rpartition("/")
        chain = self._look_up(folder)
        try:
            os.link(f"{_OPEN_FILES}/{file}", name, dst_dir_fd=chain[-1])
        except (OSError, ValueError):  # the caller falls back to a partial file, which reports the error
            return False
        finally:
            self._release(chain)
        return True

    def open_partial(self, partial: str) -> int:
        """Open a partial file for reading and writing."""
        with self.chain(PARTIAL_FILES, make=False) as chain:
            return os.open(_checked(partial), os.O_RDWR | os.O_NOFOLLOW, dir_fd=chain[-1])

    def rename_partial(self, partial: str, to: str) -> None:
        """Rename a partial file to another temporary name."""
        with self.chain(PARTIAL_FILES, make=False) as chain:
            os.rename(_checked(partial), _checked(to), src_dir_fd=chain[-1], dst_dir_fd=chain[-1])

    def drop(self, partial: str) -> None:
        """Remove a partial file if it exists."""
        with suppress(FileNotFoundError), self.chain(PARTIAL_FILES, make=False) as chain:
            os.unlink(_checked(partial), dir_fd=chain[-1])

    def put(self, partial: str, path: str, *, replace: bool = True, sync: bool = False) -> None:
        """Give a partial file its final name, atomically: readers see the old file or the complete new one.

        replace: replace a file of that name; if False, raise ExistsError. sync: sync the name and those of
        all folders of the path.
        """
        folder, _, name = path.rpartition("/")
        with self.chain(folder) as chain, self.chain(PARTIAL_FILES) as partials:
            _require_regular_file(chain[-1], name, path)
            src, dst = partials[-1], chain[-1]
            try:
                if replace:
                    os.rename(_checked(partial), name, src_dir_fd=src, dst_dir_fd=dst)
                else:  # link(2) fails if the name exists
                    os.link(_checked(partial), name, src_dir_fd=src, dst_dir_fd=dst, follow_symlinks=False)
            except OSError as error:
                if error.errno == errno.EEXIST and not replace:
                    raise ExistsError(path) from None
                if error.errno != errno.EXDEV:
                    raise
                raise _mounted(path) from None
            if not replace:
                with suppress(OSError):  # the body has its name; the sweep removes the partial file
                    os.unlink(partial, dir_fd=src)
            if not sync:
                return
            try:
                for descriptor in reversed(chain):  # each contains the next one's name, which may be new
                    os.fsync(descriptor)
            except OSError:
                if not replace:  # else the next attempt finds its own file and raises ExistsError
                    with suppress(OSError):
                        os.unlink(name, dir_fd=dst)
                raise

    def stat(self, path: str) -> os.stat_result | None:
        """Stat the file at a path; None if it is not a regular file, or a folder of the path is a link."""
        folder, _, name = path.rpartition("/")
        with suppress(FileNotFoundError, InTheWayError), self.chain(folder, make=False) as chain:
            found = os.stat(_checked(name), dir_fd=chain[-1], follow_symlinks=False)
            return found if stat.S_ISREG(found.st_mode) else None
        return None

    def open_file(self, path: str) -> int:
        """Open the regular file at a path for reading."""
        folder, _, name = path.rpartition("/")
        with self.chain(folder, make=False) as chain:
            _require_regular_file(chain[-1], name, path)
            # The file may have been replaced since: do not follow a link, do not block on a pipe.
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=chain[-1])

    def names(self, path: str) -> list[str]:
        """Return the names in a folder, sorted; empty if there is no such folder."""
        with suppress(FileNotFoundError), self.chain(path, make=False) as chain:
            return sorted(os.listdir(chain[-1]))  # noqa: PTH208 - by descriptor
        return []

    def drop_old(self, path: str, before_s: float) -> int:
        """Remove the files of a folder last modified before that Unix time. Returns their number."""
        dropped = 0
        with suppress(FileNotFoundError), self.chain(path, make=False) as chain:
            for name in os.listdir(chain[-1]):  # noqa: PTH208 - by descriptor
                with suppress(OSError):
                    if os.stat(name, dir_fd=chain[-1], follow_symlinks=False).st_mtime < before_s:
                        os.unlink(name, dir_fd=chain[-1])
                        dropped += 1
        return dropped


class _CachedView(Directory):
    """A view of a directory for one thread: see Directory.cached_view. Closes folder descriptors at exit."""

    def __init__(self, of: Directory, out: Path, reuse_s: float, clock: Callable[[], float]) -> None:
        super().__init__(out)
        self._of, self._reuse_s, self._clock = of, reuse_s, clock
        self._chains: dict[str, list[int]] = {}
        """The open descriptors by the path of their folder, reused until `_ends_s`."""
        self._old_chains: list[list[int]] = []  # may still be in use
        self._ends_s = 0.0
        self.opening = of.opening
        """The `opening` of the out folder in which `_chains` was looked up."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for chain in (*self._old_chains, *self._chains.values()):
            super()._release(chain)

    @property
    def root(self) -> int:
        return self._of.root

    def in_place(self) -> bool:
        return self._of.in_place()

    def confirm(self, opening: int) -> None:
        self._of.confirm(opening)

    def _look_up(self, path: str, *, make: bool = True) -> list[int]:
        if self._clock() >= self._ends_s or self.opening != self._of.opening:
            self._forget()
        chain = self._chains.get(path)
        if chain is None:
            chain = self._chains[path] = super()._look_up(path, make=make)
        return chain

    def _release(self, chain: list[int]) -> None:
        """Leave the chain open until the exit."""

    def create_unnamed(self) -> int | None:
        return self._of.create_unnamed()

    def create(self, partial: str) -> int:
        try:
            return super().create(partial)
        except FileNotFoundError:  # a folder in use has been removed
            self._forget()
            return super().create(partial)

    def put(self, partial: str, path: str, *, replace: bool = True, sync: bool = False) -> None:
        try:
            super().put(partial, path, replace=replace, sync=sync)
        except FileNotFoundError:
            self._forget()
            super().put(partial, path, replace=replace, sync=sync)

    def _forget(self) -> None:
        """Look up every folder again. Leaves the old descriptors open, because one may be in use."""
        self._old_chains += self._chains.values()
        self._chains.clear()
        self._ends_s, self.opening = self._clock() + self._reuse_s, self._of.opening


def make_out(out: Path, folders: Iterable[str]) -> None:
    """Create the out folder and these folders in it, and check their permissions. Raises CommandError."""
    directory = Directory(out)
    try:
        directory.open()
        directory.check_permission(("", *folders))
    except (OSError, InTheWayError) as error:
        raise unusable_out(out, error) from None
    finally:
        directory.close()


def unusable_out(out: Path, error: OSError | InTheWayError) -> CommandError:
    """Return the error for an unusable out folder. Exit code: FAILED if it may be temporary, else BAD_USE."""
    if not isinstance(error, OSError):
        return CommandError(f"--out {out}: {error}", BAD_USE)
    may_pass = fault_of(error) in {FileFault.DISK, FileFault.OTHER} and error.errno != errno.ENOENT
    problem = "is not a folder" if error.errno == errno.EEXIST else error.strerror
    return CommandError(f"--out {out}: {problem}", FAILED if may_pass else BAD_USE)


def partial_name(fetch_id: str, token: int) -> str:
    """Return the name of a body's partial file. The lane's token makes it unique to one owner."""
    return f"{fetch_id}.{token}"


def _checked(name: str) -> str:
    """Return the name. Raises InTheWayError if it is not the name of a file or folder."""
    if name in _NO_NAMES or "/" in name or "\0" in name:
        raise InTheWayError(f"{name!r} is not a name of a file or folder")
    return name


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_ino, found.st_dev


def _open_folder(parent: int, name: str, path: str) -> int:
    try:
        return os.open(_checked(name), _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno in _NOT_A_FOLDER:
            raise InTheWayError(f"{name!r} in the path {path!r} is {_kind(parent, name)}") from None
        raise


def _make_folder(root: int, parent: int, name: str, path: str) -> None:
    """Create the folder if it is missing. The error of a read-only file system mounted there names it."""
    try:
        os.mkdir(name, dir_fd=parent)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        read_only, own = (os.fstatvfs(place).f_flag & os.ST_RDONLY for place in (parent, root))
        raise (_mounted(path) if read_only and not own else error) from None


def _mounted(path: str) -> OSError:
    problem = f"a file system is mounted inside the out folder, in the path {path!r}"
    return OSError(errno.EXDEV, f"{problem}; mount it elsewhere")


def _require_regular_file(folder: int, name: str, path: str) -> None:
    """Raise InTheWayError if the name exists and is not a regular file."""
    try:
        found = os.stat(_checked(name), dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode):
        raise InTheWayError(f"{path!r} is {_kind(folder, name)}")


def _kind(folder: int, name: str) -> str:
    mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    return _KINDS.get(stat.S_IFMT(mode), "not a regular file")
