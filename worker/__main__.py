"""`python -m fetchfleet.worker` is `fetchfleet`."""

from fetchfleet.worker.cli.app import main

main()
