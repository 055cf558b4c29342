"""Counts and durations of a worker's connections, for its statistics."""

from fetchfleet.worker.observability.percentiles import Recent


class ConnectionStats:
    """The counts of one worker process since its start, and its recent durations in seconds."""

    def __init__(self) -> None:
        self.opened = 0
        self.reused = 0
        self.closed = 0
        self.pool_wait_s = Recent()
        """From handing a request to its pool until a connection is dialled for it, or it is sent."""
        self.tcp_s = Recent()
        """Until a TCP connection is open, name resolution included."""
        self.tls_s = Recent()
        """TLS handshakes."""
