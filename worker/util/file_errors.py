"""Errors of system calls on files, sorted by what can mend them. Pure."""

import errno
from enum import Enum, auto


class FileFault(Enum):
    """The cause for which a file cannot be made, written or read."""

    NAME = auto()
    """The path: another attempt with this path fails too, one with another path may not."""
    SIZE = auto()
    """The size: a smaller file may be written."""
    PERMISSION = auto()
    """The permissions: of this path, or of every path in the folder. Only a look at the folder tells."""
    DISK = auto()
    """A disk that is full, read-only or failing: time mends it."""
    OTHER = auto()
    """Anything else that time may mend: descriptors, memory, a server of files that does not answer."""


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
"""The faults that no wait mends."""


def fault_of(error: OSError) -> FileFault:
    """Return what is at fault; OTHER for an error without a number, or with one that is not known."""
    return _FAULTS.get(error.errno or 0, FileFault.OTHER)
