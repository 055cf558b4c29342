"""The meaning of an error: its reason, the bytes sent before it, and the chance of a retry."""

import errno
import os
import ssl

import pytest

from fetchfleet.jobs.contract.result import Reason
from fetchfleet.worker.errors import (
    BadAnswerError,
    ConnectError,
    ConnectTimeoutError,
    EgressRefusedError,
    FirstByteTimeoutError,
    InvalidRequestError,
    PoolTimeoutError,
    ReadError,
    ReadTimeoutError,
    RemoteProtocolError,
    TlsError,
    TlsTimeoutError,
    UnresolvedError,
    WriteError,
    WriteTimeoutError,
)
from fetchfleet.worker.fetch.error_mapping import outcome_of
from fetchfleet.worker.fetch.rules.outcome import Failed, Interrupted
from fetchfleet.worker.util.file_errors import FileFault, fault_of


def refused(reason: str | None) -> ssl.SSLError:
    """Return an error as OpenSSL names it."""
    error = ssl.SSLError(1, "said so")
    error.reason = reason  # type: ignore[assignment]
    return error


def failure_of(error: Exception, status: int | None = None) -> Failed:
    """Return the meaning of an error, as a broken exchange."""
    found = outcome_of(error, status=status)
    assert isinstance(found, Failed)
    return found


@pytest.mark.parametrize(
    ("error", "reason", "sent"),
    [
        (PoolTimeoutError(), Reason.POOL_TIMEOUT, False),
        (ConnectTimeoutError(), Reason.CONNECT_TIMEOUT, False),
        (TlsTimeoutError(), Reason.TLS_TIMEOUT, False),
        (TlsError("the host hung up"), Reason.TLS, False),
        (WriteTimeoutError(), Reason.WRITE_TIMEOUT, True),
        (FirstByteTimeoutError(), Reason.FIRST_BYTE_TIMEOUT, True),
        (ReadTimeoutError(), Reason.READ_TIMEOUT, True),
        (TimeoutError(), Reason.TOTAL_TIMEOUT, True),
    ],
)
def test_every_timeout_has_its_own_reason(error: Exception, reason: Reason, *, sent: bool) -> None:
    """An error before the request is sent can be retried with any method. None is final."""
    assert (reason, sent, False) == (
        failure_of(error).reason,
        failure_of(error).sent,
        failure_of(error).final,
    )


@pytest.mark.parametrize(
    ("error", "reason", "sent", "final"),
    [
        (ConnectError(), Reason.CONNECT, False, False),
        (EgressRefusedError(), Reason.EGRESS_REFUSED, False, True),
        (UnresolvedError(), Reason.DNS, False, False),
        (ReadError(), Reason.READ, True, False),
        (WriteError(), Reason.WRITE, True, False),
        (RemoteProtocolError(), Reason.PROTOCOL, True, False),
        (BadAnswerError(), Reason.PROTOCOL, True, False),
        (InvalidRequestError(), Reason.PROTOCOL, True, True),
    ],
)
def test_every_broken_exchange_has_a_reason(
    error: Exception, reason: Reason, *, sent: bool, final: bool
) -> None:
    """Without a connection nothing was sent. A request that cannot be written is final."""
    found = failure_of(error)

    assert (reason, sent, final) == (found.reason, found.sent, found.final)


def test_a_protocol_error_after_the_head_is_a_truncated_body() -> None:
    """The length, or the chunks, announced more."""
    assert failure_of(RemoteProtocolError(), status=200).reason is Reason.TRUNCATED
    assert failure_of(BadAnswerError(), status=200).reason is Reason.PROTOCOL


@pytest.mark.parametrize(
    ("message", "final"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", True),
        ("TLSV1_ALERT_PROTOCOL_VERSION", True),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", True),
        ("TLSV1_ALERT_INTERNAL_ERROR", False),
        ("DECRYPTION_FAILED_OR_BAD_RECORD_MAC", False),
        ("WRONG_VERSION_NUMBER", False),
        (None, False),
    ],
)
@pytest.mark.parametrize("status", [None, 200])
def test_a_tls_error_is_tls_at_any_depth(message: str | None, status: int | None, *, final: bool) -> None:
    """Wrapped or bare, before or after the head, and never a disk error. Some may pass."""
    bare = refused(message)
    caused = ReadError(str(bare))
    caused.__cause__ = bare
    for error in (bare, TlsError(bare), caused):
        found = failure_of(error, status)
        assert (found.reason, found.final) == (Reason.TLS, final)


def test_a_certificate_that_is_refused_is_final() -> None:
    """The next handshake would fail the same way."""
    assert failure_of(TlsError(ssl.SSLCertVerificationError())).final


@pytest.mark.parametrize("number", sorted(errno.errorcode))
@pytest.mark.parametrize("out_refuses", [True, False])
def test_other_system_errors_are_disk_errors(number: int, *, out_refuses: bool) -> None:
    """An error of a name or a size is final, with its text. Any other is waited for."""
    error = OSError(number, os.strerror(number))
    found = outcome_of(error, status=200, out_refuses=out_refuses)

    final = {FileFault.NAME, FileFault.SIZE} | (set() if out_refuses else {FileFault.PERMISSION})
    if fault_of(error) in final:
        reason = Reason.TOO_LARGE if fault_of(error) is FileFault.SIZE else Reason.BAD_DEST
        assert isinstance(found, Failed)
        assert (reason, True, True, 200) == (found.reason, found.final, found.sent, found.status)
        assert os.strerror(number) in found.note
    else:
        assert isinstance(found, Interrupted)
        assert Reason.DISK is found.reason
        assert found.wait_s > 0


def test_a_disk_timeout_differs_from_a_total_timeout() -> None:
    """An error of the system has a number, one of asyncio has none."""
    assert isinstance(outcome_of(OSError(errno.ETIMEDOUT, "message"), status=200), Interrupted)
    assert failure_of(TimeoutError()).reason is Reason.TOTAL_TIMEOUT
