"""Measure the processor time of TLS handshakes: one small file from each of many hosts.

    python -m tools.bench.handshakes [--hosts N] [--rounds N]

Each program of PROGRAMS runs once per round, in turn, and once with a single host: the difference is the
time without that of the start. All processes of a program count.
"""

import argparse
import resource
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from fetchfleet.worker.settings import ENGINES
from tools.bench import bodies
from tools.bench.compare import Load, hosts
from tools.bench.peers import PEERS, Peer, Task
from tools.bench.process import BenchError, run
from tools.origin.certificates import Authority
from tools.origin.static_server import serve_nginx

SIZE_BYTES = 1024
HOSTS_A_CERTIFICATE = 20
SCRIPT = "aiohttp script"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    peers = {
        f"fetchfleet, {engine}": PEERS[0]._replace(environment={"FETCHFLEET_ENGINE": engine})
        for engine in ENGINES
    }
    peers |= {peer.name: peer for peer in PEERS if peer.name == SCRIPT and peer.there}
    with tempfile.TemporaryDirectory(prefix="ff-bench-") as name:
        folder = Path(name)
        (folder / "nginx").mkdir()
        bodies.make(folder / "nginx" / "served", given.hosts, SIZE_BYTES)
        addresses = hosts(Load(given.hosts, SIZE_BYTES, given.hosts, given.rounds))
        authority = Authority(folder)
        with serve_nginx(_servers(authority, addresses), addresses, folder / "nginx") as port:
            urls = [f"https://{host}:{port}/{number}.bin" for number, host in enumerate(addresses)]
            trusting = {"SSL_CERT_FILE": str(authority.cert)}
            took_s = _rounds(peers, urls, folder, trusting, given.rounds)
    _tell(took_s, given.hosts)


def _servers(authority: Authority, addresses: Sequence[str]) -> str:
    """Return the servers of nginx's configuration, with certificates of the authority."""
    servers = []
    for at in range(0, len(addresses), HOSTS_A_CERTIFICATE):
        some = addresses[at : at + HOSTS_A_CERTIFICATE]
        own = authority.issue(f"host{at}", *(f"IP:{host}" for host in some))
        listen = " ".join(f"listen {host}:{{port}} ssl;" for host in some)
        servers.append(
            f"server {{ {listen} ssl_certificate {own.cert}; ssl_certificate_key {own.key}; root served; }}"
        )
    return "\n".join(servers)


def _rounds(
    peers: Mapping[str, Peer], urls: Sequence[str], folder: Path, environment: Mapping[str, str], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Return the processor seconds of each program and round: with one host, and with all."""
    took_s: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    for number in range(rounds):
        for name, peer in peers.items():
            one, many = (
                _turn(peer, wanted, folder / f"{number} {name} {len(wanted)}", environment)
                for wanted in (urls[:1], urls)
            )
            took_s[name].append((one, many))
    return took_s


def _turn(peer: Peer, urls: Sequence[str], folder: Path, environment: Mapping[str, str]) -> float:
    """Let the program fetch the URLs; return the processor seconds of its processes."""
    out, listed = folder / "out", folder / "urls.txt"
    out.mkdir(parents=True)
    listed.write_text("\n".join(urls) + "\n")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(
        peer.name,
        peer.command(Task(urls, listed, out, len(urls))),
        folder,
        {**environment, **peer.environment},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    stored = sum(path.stat().st_size == SIZE_BYTES for path in out.rglob("*") if path.is_file())
    if stored != len(urls):
        raise BenchError(f"{peer.name} stored {stored} of {len(urls)} files")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _tell(took_s: Mapping[str, Sequence[tuple[float, float]]], count: int) -> None:
    """Print the medians, and their ratio to the script's."""
    medians = {
        name: (
            statistics.median(many for _, many in own),
            statistics.median(many - one for one, many in own),
        )
        for name, own in took_s.items()
    }
    script = medians.get(SCRIPT)
    for name, (whole_s, rest_s) in medians.items():
        times = (
            ""
            if script is None
            else f"  {whole_s / script[0]:5.2f}  {rest_s / script[1]:5.2f} times the script"
        )
        print(f"{name:22} {whole_s:6.2f} s  {rest_s / count * 1e6:6.0f} µs a host beyond the start{times}")


if __name__ == "__main__":
    main()
