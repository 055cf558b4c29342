"""Errors of files, by what can mend them."""

import errno
import os

import pytest

from fetchfleet.worker.util.file_errors import FINAL, FileFault, fault_of


def faults(*names: str) -> set[FileFault]:
    """Return what is at fault for errors of these names."""
    return {fault_of(OSError(getattr(errno, name), "said")) for name in names}


def test_each_error_has_the_fault_that_it_tells_of() -> None:
    """A path or a size is at fault for one fetch; the rest may be at fault for all."""
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
def test_an_error_that_is_not_listed_is_waited_for(number: int) -> None:
    """Only what is known to be final ends a fetch at once."""
    fault = fault_of(OSError(number, os.strerror(number)))

    assert (fault is FileFault.OTHER) == (fault not in {*FINAL, FileFault.PERMISSION, FileFault.DISK})


def test_an_error_without_a_number_is_waited_for() -> None:
    """As when a file is shorter than it was."""
    assert {FileFault.OTHER} == {fault_of(error) for error in (OSError("short"), OSError(0, "x"))}
