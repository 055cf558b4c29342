"""Errors of system calls on files, sorted by their remedy. Pure."""

import errno
from enum import Enum, auto


class FileFault(Enum):
    """The reason a file cannot be created, written or read."""

    NAME = auto()
    """The path. Another attempt with this path fails too; another path may work."""
    SIZE = auto()
    """The size. A smaller file may work."""
    PERMISSION = auto()
    """The permissions of this path, or of the whole folder; the error does not say which."""
    DISK = auto()
    """The disk is full, read-only or failing. A later attempt may work."""
    OTHER = auto()
    """Anything else: no descriptors or memory left, a file server that does not answer. May be temporary."""


_NUMBERS = {
    FileFault.NAME: (
        *(errno.EBUSY, errno.EEXIST, errno.EILSEQ, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.EMLINK),
        *(errno.ENAMETOOLONG, errno.ENOSYS, errno.ENOTDIR, errno.ENOTEMPTY, errno.EOPNOTSUPP),
        *(errno.ETXTBSY, errno.EXDEV),
    ),
    FileFault.SIZE: (errno.EFBIG, errno.EOVERFLOW),
    FileFault.PERMISSION: (errno.EACCES, errno.EPERM),
    FileFault.DISK: (errno.EDQUOT, errno.EIO, errno.ENOSPC, errno.EROFS),
}
_FAULTS = {number: fault for fault, numbers in _NUMBERS.items() for number in numbers}

FINAL = frozenset({FileFault.NAME, FileFault.SIZE})
"""The faults that do not go away with time."""


def fault_of(error: OSError) -> FileFault:
    """Return the fault behind an error; OTHER if its errno is missing or unknown."""
    return _FAULTS.get(error.errno or 0, FileFault.OTHER)
