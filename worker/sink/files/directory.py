"""Names below the out folder, looked up by descriptor: no link in the way is ever followed out of it.

Every name is looked up from the out folder's own descriptor, one part after the other. The descriptor of a
folder below it is not kept for more than a moment: it would go along when somebody moves that folder, out of
the out folder even, and bodies with it.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fetchfleet.worker.errors import ExistsError, InTheWayError
from fetchfleet.worker.util.clock import mono_s

STATE_FOLDER = ".fetchfleet"
"""In it: a run's Redis and the workers' logs, and the parts of bodies that are not whole yet."""


PARTS = f"{STATE_FOLDER}/parts"

_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_NAMELESS = getattr(os, "O_TMPFILE", 0)
_OPEN_FILES = "/proc/self/fd"
_NOT_KNOWN = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL})
"""What file systems and kernels say that know no nameless files."""

_NOT_A_FOLDER = frozenset({errno.ELOOP, errno.ENOTDIR})


class Folders:
    """The out folder, held open from open() to close(), and what is below it. Safe among threads."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._root: int | None = None
        self._knows_nameless = bool(_NAMELESS) and Path(_OPEN_FILES).is_dir()

    def open(self, *, make: bool = True) -> None:
        """Hold the out folder; it may be a link itself. make: where it is missing it is made."""
        self.close()
        if make:
            self._out.mkdir(parents=True, exist_ok=True)
        self._root = os.open(self._out, _FOLDER)

    def close(self) -> None:
        """Let go of the out folder; again without harm."""
        if self._root is not None:
            root, self._root = self._root, None
            os.close(root)

    @property
    def root(self) -> int:
        """The descriptor of the out folder."""
        if self._root is None:
            raise OSError(errno.EBADF, f"{self._out} is not open")
        return self._root

    @contextmanager
    def way(self, path: str, *, make: bool = True) -> Iterator[list[int]]:
        """The folders that lead to a folder and itself, as descriptors, the out folder first.

        make: what is missing is made. Raises InTheWayError where something else than a folder stands.
        """
        with ExitStack() as opened:
            way = [self.root]
            for name in path.split("/") if path else ():
                way.append(_enter(way[-1], name, path, make=make))
                opened.callback(os.close, way[-1])
            yield way

    @contextmanager
    def at_hand(self, moment_s: float) -> Iterator["Folders"]:
        """The same, for one thread: what is entered in this block stays so for that moment."""
        with ExitStack() as entered:
            yield _AtHand(self, self._out, moment_s, entered)

    def create(self, part: str) -> int:
        """A new, empty part, open for writing.

        One that could not be removed before gives way. Raises InTheWayError where something stands that is
        no file, and OSError.
        """
        with self.way(PARTS) as way:
            with suppress(FileExistsError):
                return os.open(part, _NEW_FILE, 0o666, dir_fd=way[-1])
            _refuse_what_is_no_file(way[-1], part, f"{PARTS}/{part}")
            os.unlink(part, dir_fd=way[-1])
            return os.open(part, _NEW_FILE, 0o666, dir_fd=way[-1])

    def nameless(self) -> int | None:
        """A new, empty file, open for writing, that is gone when it is closed; None where none can be had."""
        if not self._knows_nameless:
            return None
        try:
            return os.open(".", os.O_WRONLY | _NAMELESS, 0o666, dir_fd=self.root)
        except OSError as error:
            self._knows_nameless = error.errno not in _NOT_KNOWN
            return None

    def name(self, file: int, path: str) -> bool:
        """Whether the nameless file has that name now, and so stays; not where anything has it, or may not.

        In one step, as put(). Raises InTheWayError, and OSError where there can be no such folder.
        """
        folder, _, name = path.rpartition("/")
        with self.way(folder) as way:
            try:
                os.link(f"{_OPEN_FILES}/{file}", name, dst_dir_fd=way[-1])
            except OSError:  # of whatever kind: who tries with a part is told
                return False
        return True

    def open_part(self, part: str) -> int:
        """A part that is there, open for reading and writing; raises InTheWayError and OSError."""
        with self.way(PARTS, make=False) as way:
            return os.open(part, os.O_RDWR | os.O_NOFOLLOW, dir_fd=way[-1])

    def rename_part(self, part: str, to: str) -> None:
        """Give a part another temporary name; raises InTheWayError and OSError."""
        with self.way(PARTS, make=False) as way:
            os.rename(part, to, src_dir_fd=way[-1], dst_dir_fd=way[-1])

    def drop(self, part: str) -> None:
        """Remove a part, if it is there."""
        with suppress(FileNotFoundError), self.way(PARTS, make=False) as way:
            os.unlink(part, dir_fd=way[-1])

    def put(self, part: str, path: str, *, replace: bool = True, sync: bool = False) -> None:
        """Give a part its name, in one step: there is never half a file at it, nor none where one was.

        replace: also where a file stands, else ExistsError is raised. sync: the name, and those of all
        folders on the way to it, are on the disk afterwards. Raises InTheWayError and OSError.
        """
        folder, _, name = path.rpartition("/")
        with self.way(folder) as way, self.way(PARTS) as parts:
            _refuse_what_is_no_file(way[-1], name, path)
            if replace:
                _rename(part, parts[-1], name, way[-1], path)
            else:
                _link(part, parts[-1], name, way[-1], path)
            if sync:
                _sync(way, name, keep=replace)

    def stat(self, path: str) -> os.stat_result | None:
        """Of the file at a path; None where there is no file, or a link leads there."""
        folder, _, name = path.rpartition("/")
        with suppress(FileNotFoundError, InTheWayError), self.way(folder, make=False) as way:
            found = os.stat(name, dir_fd=way[-1], follow_symlinks=False)
            return found if stat.S_ISREG(found.st_mode) else None
        return None

    def open_file(self, path: str) -> int:
        """The file at a path, open for reading; raises InTheWayError where there is no file, and OSError."""
        folder, _, name = path.rpartition("/")
        with self.way(folder, make=False) as way:
            _refuse_what_is_no_file(way[-1], name, path)
            # What it is may have changed since: a link is not followed, a pipe not waited for.
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=way[-1])

    def names(self, path: str) -> list[str]:
        """What is in a folder, none if it is not there; raises InTheWayError and OSError."""
        with suppress(FileNotFoundError), self.way(path, make=False) as way:
            return sorted(os.listdir(way[-1]))  # noqa: PTH208 - by descriptor
        return []

    def drop_old(self, path: str, before_s: float) -> int:
        """Remove the files of a folder that were last written to before that time; how many they were.

        None, where it is not there. Raises InTheWayError and OSError.
        """
        dropped = 0
        with suppress(FileNotFoundError), self.way(path, make=False) as way:
            for name in os.listdir(way[-1]):  # noqa: PTH208 - by descriptor
                with suppress(OSError):
                    if os.stat(name, dir_fd=way[-1], follow_symlinks=False).st_mtime < before_s:
                        os.unlink(name, dir_fd=way[-1])
                        dropped += 1
        return dropped


class _AtHand(Folders):
    """See Folders.at_hand; it does not open or close the out folder."""

    def __init__(self, of: Folders, out: Path, moment_s: float, entered: ExitStack) -> None:
        super().__init__(out)
        self._of = of
        self._moment_s = moment_s
        self._entered = entered
        self._ways: dict[str, list[int]] = {}
        self._ends_s = 0.0

    @property
    def root(self) -> int:
        return self._of.root

    @contextmanager
    def way(self, path: str, *, make: bool = True) -> Iterator[list[int]]:
        if mono_s() >= self._ends_s:
            self._forget()
        if path not in self._ways:
            self._ways[path] = self._entered.enter_context(super().way(path, make=make))
        yield self._ways[path]

    def nameless(self) -> int | None:
        return self._of.nameless()

    def create(self, part: str) -> int:
        try:
            return super().create(part)
        except FileNotFoundError:  # somebody has removed a folder that we are in
            self._forget()
            return super().create(part)

    def put(self, part: str, path: str, *, replace: bool = True, sync: bool = False) -> None:
        try:
            super().put(part, path, replace=replace, sync=sync)
        except FileNotFoundError:
            self._forget()
            super().put(part, path, replace=replace, sync=sync)

    def _forget(self) -> None:
        """They stay open to the end of the block: one may just be in use."""
        self._ways.clear()
        self._ends_s = mono_s() + self._moment_s


def _enter(parent: int, name: str, path: str, *, make: bool) -> int:
    try:
        return _open_folder(parent, name, path)
    except FileNotFoundError:
        if not make:
            raise
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=parent)
    return _open_folder(parent, name, path)


def _open_folder(parent: int, name: str, path: str) -> int:
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno in _NOT_A_FOLDER:
            raise InTheWayError(f"{name!r} on the way to {path!r} is {_kind(parent, name)}") from None
        raise


def _refuse_what_is_no_file(folder: int, name: str, path: str) -> None:
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode):
        raise InTheWayError(f"{path!r} is {_kind(folder, name)}")


def _kind(folder: int, name: str) -> str:
    mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "no ordinary file"


def _rename(part: str, parts: int, name: str, folder: int, path: str) -> None:
    try:
        os.rename(part, name, src_dir_fd=parts, dst_dir_fd=folder)
    except OSError as error:
        raise _mounted(error, path) from None


def _link(part: str, parts: int, name: str, folder: int, path: str) -> None:
    """link(2) refuses a name that is taken, where rename(2) would replace it."""
    try:
        os.link(part, name, src_dir_fd=parts, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        raise ExistsError(f"{path!r} is there already") from None
    except OSError as error:
        raise _mounted(error, path) from None
    with suppress(OSError):  # the body has its name; its other one goes with the old parts
        os.unlink(part, dir_fd=parts)


def _mounted(error: OSError, path: str) -> OSError:
    if error.errno != errno.EXDEV:
        return error
    what = f"a file system is mounted inside the out folder, on the way to {path!r}; mount it elsewhere"
    return OSError(errno.EXDEV, what)


def _sync(way: list[int], name: str, *, keep: bool) -> None:
    """The folder that holds the name first, then each that holds the last one's: another may have made it."""
    try:
        for folder in reversed(way):
            os.fsync(folder)
    except OSError:
        if not keep:  # else the fetch, made again, would find its own file in its place
            with suppress(OSError):
                os.unlink(name, dir_fd=way[-1])
        raise
