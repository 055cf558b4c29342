"""Errors of files, by their remedy."""

import errno
import os

import pytest

from fetchfleet.worker.util.file_errors import FINAL, FileFault, fault_of


def faults(*names: str) -> set[FileFault]:
    """Return the fault of each of these errors."""
    return {fault_of(OSError(getattr(errno, name), "said")) for name in names}


def test_each_error_has_its_fault() -> None:
    """An error of a path or a size concerns one fetch. Others may concern all."""
    assert {FileFault.NAME} == faults(
        *("EINVAL", "EILSEQ", "ENAMETOOLONG", "ENOTDIR", "ELOOP", "EISDIR", "EEXIST", "ENOTEMPTY", "EXDEV"),
        *("EBUSY", "ETXTBSY", "EMLINK", "EOPNOTSUPP", "ENOTSUP", "ENOSYS"),
    )
    assert {FileFault.SIZE} == faults("EFBIG", "EOVERFLOW")
    assert {FileFault.PERMISSION} == faults("EACCES", "EPERM")
    assert {FileFault.DISK} == faults("ENOSPC", "EDQUOT", "EROFS", "EIO")
    assert {FileFault.OTHER} == faults(
        *(
            "EMFILE",
            "ENFILE",
            "ENOMEM",
            "EAGAIN",
            "ESTALE",
            "ENODEV",
            "ENXIO",
            "ENOENT",
            "ENOLCK",
            "ENOTCONN",
        ),
        *("ETIMEDOUT", "EHOSTDOWN", "EBADF"),
    )


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_an_unlisted_error_is_waited_for(number: int) -> None:
    """Only an error known to be final ends a fetch at once."""
    fault = fault_of(OSError(number, os.strerror(number)))

    assert (fault is FileFault.OTHER) == (fault not in {*FINAL, FileFault.PERMISSION, FileFault.DISK})


def test_an_error_without_a_number_is_waited_for() -> None:
    """A file that is shorter than before raises such an error."""
    assert {FileFault.OTHER} == {fault_of(error) for error in (OSError("short"), OSError(0, "x"))}
