"""Count TCP connections by state, from the kernel's list (proc_net_tcp(5))."""

import socket
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

# include/net/tcp_states.h, from 1.
STATES = (
    *("established", "syn_sent", "syn_recv", "fin_wait1", "fin_wait2", "time_wait"),
    *("close", "close_wait", "last_ack", "listen", "closing", "new_syn_recv"),
)


def connections(*urls: str) -> Counter[str]:
    """Count the IPv4 endpoints of connections with the origins of these URLs, by TCP state."""
    wanted = {_as_listed(urlsplit(url)) for url in urls}
    found: Counter[str] = Counter()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if wanted & {local, remote}:
            found[STATES[int(state, 16) - 1]] += 1
    return found


def _as_listed(origin: SplitResult) -> str:
    address = int.from_bytes(socket.inet_aton(origin.hostname or ""), sys.byteorder)
    return f"{address:08X}:{origin.port:04X}"
