"""Counts and durations of a worker's connections, for its stats."""

from fetchfleet.worker.observability.percentiles import Recent


class ConnectionStats:
    """The connection counts of one worker process since its start, and recent durations."""

    def __init__(self) -> None:
        self.opened = 0
        self.reused = 0
        self.closed = 0
        self.pool_wait_s = Recent()
        """The waits of requests for a connection or the start of a dial."""
        self.tcp_s = Recent()
        """The times to open a TCP connection, name resolution included."""
        self.tls_s = Recent()
        """The durations of TLS handshakes."""
