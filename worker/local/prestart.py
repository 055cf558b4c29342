"""A worker of `fetchfleet run`, begun before it is known what it is to do: it imports what a worker needs.

Standard input then brings its orders, as JSON: the arguments of `fetchfleet worker`, and where its log is.
Nothing comes if there is nothing to do.
"""

import json
import os
import sys

from fetchfleet.worker.util import gc_freeze

with gc_freeze.none_yet():
    from fetchfleet.worker.cli import worker  # noqa: F401 what takes long of what app needs
    from fetchfleet.worker.cli.app import app


def main() -> None:
    """Be told, and be that worker."""
    told = sys.stdin.buffer.read()
    if not told:
        return
    orders = json.loads(told)
    log = os.open(orders["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    os.close(log)
    app(["worker", *orders["arguments"]], prog_name="fetchfleet")


if __name__ == "__main__":
    main()
