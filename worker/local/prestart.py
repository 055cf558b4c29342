"""The main function of a worker process of `fetchfleet run`, which starts before its settings are known.

Its configuration arrives on standard input as JSON: `settings`, by the names of the flags, and the `log` file
to append to. Without a configuration it exits. The first workers are forked from the command, which has
imported this module. Their replacements execute it.
"""

import gc
import json
import os
import sys

if __name__ == "__main__":
    gc.disable()  # see gc_freeze

from fetchfleet.jobs.contract.safe_text import shown_lines
from fetchfleet.worker.errors import CommandError
from fetchfleet.worker.local.process import (
    WORKER_ID,
    run_until_signal,
    set_process_name,
    worker_settings_from,
)
from fetchfleet.worker.observability import log
from fetchfleet.worker.runtime.arq_worker import run_worker


def main() -> int:
    """Wait for the configuration, then run the worker. Return the exit code."""
    set_process_name(os.environ[WORKER_ID])
    text = sys.stdin.buffer.read()
    if not text:
        return 0
    config = json.loads(text)
    log_file = os.open(config["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(log_file, sys.stdout.fileno())
    os.dup2(log_file, sys.stderr.fileno())
    os.close(log_file)
    try:
        settings = worker_settings_from(config["settings"])
        log.configure(level=settings.log_level, schema=settings.log_schema, worker=settings.worker_id)
        run_until_signal(run_worker(settings))
    except CommandError as error:
        print(shown_lines(str(error)), file=sys.stderr)  # noqa: T201 standard error is the log
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
