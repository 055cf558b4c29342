"""Errors of Redis that pass with time, and errors that do not."""

import socket
import ssl

import pytest
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004 as redis-py raises it
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,  # noqa: A004 as redis-py raises it
)

from fetchfleet.jobs.errors import FleetUnreachableError, KeyTypeConflictError
from fetchfleet.jobs.redis_errors import is_refusal, is_transient


def from_socket(error: OSError) -> Exception:
    """Return the error of a connection as redis-py raises it: with the socket's error as its context."""
    try:
        try:
            raise error
        except OSError as cause:
            raise ConnectionError(str(cause))  # noqa: B904 as redis-py does
    except ConnectionError as wrapped:
        return wrapped


def caused_by(error: Exception, of: type[ConnectionError] = ConnectionError) -> Exception:
    """Return a connection error with a cause."""
    outer = of(str(error))
    outer.__cause__ = error
    return outer


MENDED_BY_TIME = [
    ConnectionError("Connection closed by server."),
    ConnectionError("max number of clients reached"),
    TimeoutError("Timeout reading from socket"),
    BusyLoadingError("Redis is loading the dataset in memory"),
    caused_by(BusyLoadingError("Redis is loading the dataset in memory")),
    caused_by(ResponseError("MASTERDOWN Link with MASTER is down")),
    ReadOnlyError("You can't write against a read only replica."),
    ResponseError("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
    ResponseError("NOREPLICAS Not enough good replicas to write."),
    ResponseError("MISCONF Redis is configured to save RDB snapshots, but it can't persist on disk"),
    ResponseError("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE."),
    ResponseError("UNKILLABLE Sorry the script already executed write commands"),
    ResponseError("TRYAGAIN Multiple keys request during rehashing of slot"),
    ResponseError("CLUSTERDOWN The cluster is down"),
    ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed"),
    ResponseError(
        "Error running script (call to f_1): @user_script: 9: -LOADING Redis is loading the dataset"
    ),
    from_socket(ConnectionRefusedError(111, "Connection refused")),
    from_socket(FileNotFoundError(2, "No such file or directory")),
    from_socket(socket.gaierror(-2, "Name or service not known")),
    from_socket(ssl.SSLEOFError("EOF occurred in violation of protocol")),
    ConnectionResetError(104, "Connection reset by peer"),
]
LASTING = [
    AuthenticationError("invalid username-password pair or user is disabled."),
    caused_by(AuthenticationError("Authentication required.")),
    NoPermissionError("this user has no permissions to run the 'xread' command"),
    ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
    caused_by(ResponseError("DB index is out of range")),
    ResponseError("BUSYGROUP Consumer Group name already exists"),
    ResponseError("DB index is out of range"),
    ResponseError("unknown command 'XREAD'"),
    ResponseError("MOVED 1 127.0.0.1:1"),
    OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
    KeyTypeConflictError("ff:batch:BUSY ", "list", "hash"),
    FleetUnreachableError("Redis has not answered"),
    caused_by(ConnectionError("Connection refused"), FleetUnreachableError),
    from_socket(PermissionError(13, "Permission denied")),
    from_socket(ssl.SSLCertVerificationError(1, "certificate verify failed")),
    from_socket(ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")),
    BrokenPipeError(32, "Broken pipe"),
    OSError(28, "No space left on device"),
]


@pytest.mark.parametrize("error", MENDED_BY_TIME, ids=str)
def test_a_redis_that_is_away_or_busy_is_waited_for(error: Exception) -> None:
    """It restarts, loads, fails over, is frozen, has too many clients or runs a script."""
    assert is_transient(error)
    assert not is_refusal(error)


@pytest.mark.parametrize("error", LASTING, ids=str)
def test_an_error_that_needs_an_operator_is_not_waited_for(error: Exception) -> None:
    """A wrong password, user, database, type or certificate, and errors of other things than Redis."""
    assert not is_transient(error)


def test_a_wrong_password_or_a_missing_permission_is_a_refusal() -> None:
    """The error may be bare, or the cause of the connection's error."""
    assert [True, True, True] == [is_refusal(error) for error in LASTING[:3]]
    assert not any(is_refusal(error) for error in LASTING[3:])
