"""Which engines there are, and what one of them cannot do: said at the start, by name."""

from collections.abc import Iterator
from importlib.util import find_spec

from fetchfleet.worker.policy.file import Policy

HTTPX, REQWEST = "httpx", "reqwest"
ENGINES = (HTTPX, REQWEST)


def faults(engine: str, policy: Policy) -> Iterator[str]:
    """Why that engine cannot serve the policy here, each with its remedy."""
    if engine not in ENGINES:
        yield f"--engine {engine}: there is {', '.join(ENGINES)}"
    if engine == REQWEST:
        if find_spec("pyreqwest") is None:
            yield f"--engine {engine}: is not installed; pip install 'fetchfleet[reqwest]'"
        yield from _lacks(policy)


def _lacks(policy: Policy) -> Iterator[str]:
    """It adds to those whom the system trusts, and cannot do without them."""
    for where, lane in policy.named():
        if lane.tls.ca_file:
            yield f"[{where}] ca_file: --engine reqwest would trust the system's as well; use --engine httpx"
