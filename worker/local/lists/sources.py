"""The files of a list: opened as often as needed, decompressed, and refused if they change in between."""

import glob
import io
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from fetchfleet.worker.local.lists.rows import ListChangedError, ListError

STANDARD_INPUT = "-"
STORES = ("s3://", "gs://", "az://")
URLS = ("http://", "https://")
GZIP, ZSTD, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
"""The first bytes of a compressed file, and of a Parquet file."""

BLOCK_BYTES = 256 * 1024
KEPT_IN_MEMORY_BYTES = 1 << 20
"""The size up to which standard input stays in memory; the rest goes to a temporary file."""
KEPT_OPEN = 64
"""The number of files of a list that stay open until its end."""
MAX_LAYERS = 2
"""The number of compressions that are undone: a temporary file may be compressed twice."""
MAX_WINDOW_LOG = 26
"""64 MiB, the largest window of Zstandard, which bounds the memory of its decoder."""


class Version(NamedTuple):
    """The attributes of a file that change with its content."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int


class Reread(io.RawIOBase):
    """A file, read with an offset of its own, so that several readers may share one descriptor."""

    def __init__(self, file: IO[bytes], check: Callable[[int], None]) -> None:
        """check: called with the descriptor before each read."""
        super().__init__()
        self._file = file
        self._check = check
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the offset, as of any file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._file.fileno()).st_size}
        self._at = base[whence] + offset
        return self._at

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Read at the offset."""
        self._check(self._file.fileno())
        size = os.preadv(self._file.fileno(), [buffer], self._at)
        self._at += size
        return size


class ListFile:
    """One file of a list. `opened` may be called repeatedly. Close it at the end."""

    def __init__(self, name: str, open_raw: Callable[[], io.RawIOBase | io.BytesIO], *own: IO[bytes]) -> None:
        """open_raw: opens the bytes as stored. own: files to close."""
        self.name = name
        self._open_raw = open_raw
        self.own = own

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files that stay open between passes."""
        for file in self.own:
            file.close()

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """Open the file, decompressed. Errors in the block become a ListError that names it."""
        try:
            with ExitStack() as stack:
                raw = stack.enter_context(self._open_raw())
                file: io.BufferedReader[Any] = stack.enter_context(io.BufferedReader(raw, BLOCK_BYTES))
                for _ in range(MAX_LAYERS):
                    head = file.peek(len(ZSTD))
                    if not head.startswith((GZIP, ZSTD)):
                        break
                    file = stack.enter_context(unpacked(file, head))
                yield file
        except OSError as error:  # of the file system, or of gzip
            raise ListError(f"{self.name}: {error.strerror or error}") from None
        except EOFError:
            raise ListError(f"{self.name}: the compressed data is cut short") from None


@contextmanager
def unpacked(file: IO[bytes], head: bytes) -> Iterator["io.BufferedReader[Any]"]:
    """Decompress a file that begins with GZIP or ZSTD. Raises OSError and EOFError."""
    if head.startswith(GZIP):
        import gzip  # noqa: PLC0415 only for such a file
        import zlib  # noqa: PLC0415

        with gzip.GzipFile(fileobj=file, mode="rb") as packed, _as_os_error(zlib.error):
            yield io.BufferedReader(packed, BLOCK_BYTES)
        return
    from fetchfleet.worker.body import zstd  # noqa: PLC0415

    options = {int(zstd.DecompressionParameter.window_log_max): MAX_WINDOW_LOG}
    with zstd.ZstdFile(file, options=options) as packed, _as_os_error(zstd.ZstdError):
        yield io.BufferedReader(packed, BLOCK_BYTES)


@contextmanager
def _as_os_error(kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind as error:
        raise OSError(str(error)) from None


def find_sources(file: str) -> list[ListFile]:
    """Return the files of a list, given as the argument FILE; `-` is standard input. Raises ListError."""
    if file == STANDARD_INPUT:
        with os.fdopen(0, "rb", closefd=False) as stream:
            return [spooled(file, stream)]
    if file.startswith(STORES):
        from fetchfleet.worker.local.lists.stored_lists import find_objects  # noqa: PLC0415

        return [spooled(name, stream) for name, stream in find_objects(file)]
    paths = [Path(file)]
    if not paths[0].exists() and glob.has_magic(file):
        paths = [Path(path) for path in sorted(glob.glob(file, recursive=True))]  # noqa: PTH207 of any path
        paths = [path for path in paths if not path.is_dir()]
        if not paths:
            raise ListError(f"{file}: no file matches")
    return file_sources({str(path): path for path in paths})


def file_sources(paths: Mapping[str, Path]) -> list[ListFile]:
    """Return the sources of files, given by their name in errors. Raises ListError."""
    sources: list[ListFile] = []
    try:
        for name, path in paths.items():
            sources.append(file_source(name, path, keep=len(sources) < KEPT_OPEN))
    except BaseException:
        for source in sources:
            source.close()
        raise
    return sources


def file_source(name: str, path: Path, *, keep: bool) -> ListFile:
    """Return the source of a file. keep: it stays open, so that it may be renamed or deleted meanwhile."""
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise ListError(f"{name}: {error.strerror}") from None
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device
        with file:
            return spooled(name, io.BufferedReader(file, BLOCK_BYTES))
    version = _version(status)

    def check(descriptor: int) -> None:
        if _version(os.fstat(descriptor)) != version:
            raise ListChangedError(
                f"{name}: changed after it was checked; repeat the command once the file is complete"
            )

    def reopen() -> io.RawIOBase:
        again = path.open("rb", buffering=0)
        return _Owned(again, check)

    if keep:
        return ListFile(name, lambda: Reread(file, check), file)
    file.close()
    return ListFile(name, reopen)


class _Owned(Reread):
    """A file that is closed with its reader."""

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _version(status: os.stat_result) -> Version:
    return Version(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def spooled(name: str, stream: IO[bytes]) -> ListFile:
    """Read a stream to its end, into memory or an unnamed temporary file, and return its source.

    The file is compressed unless the stream is. Raises ListError.
    """
    try:
        head = stream.read(KEPT_IN_MEMORY_BYTES)
        if len(head) < KEPT_IN_MEMORY_BYTES:
            return ListFile(name, lambda: io.BytesIO(head))
        file = tempfile.TemporaryFile(prefix="fetchfleet-")  # noqa: SIM115 the source closes it
        with ExitStack() as stack:
            stack.callback(file.close)
            target: IO[bytes] = file
            if not head.startswith((GZIP, ZSTD, PARQUET)):
                from fetchfleet.worker.body import zstd  # noqa: PLC0415

                target = stack.enter_context(io.BufferedWriter(zstd.ZstdFile(file, "wb", level=1)))
            while head:
                target.write(head)
                head = stream.read(BLOCK_BYTES)
            if target is not file:
                target.close()
            file.flush()
            stack.pop_all()
    except OSError as error:
        raise ListError(f"{name}: {error.strerror or error}{_place(error)}") from None
    return ListFile(name, lambda: Reread(file, lambda _: None), file)


def _place(error: OSError) -> str:
    """Return where a temporary file could not be written."""
    return f" in {tempfile.gettempdir()}, the folder for temporary files (TMPDIR)" if error.errno else ""
