"""The command `fetchfleet`, run as `python -m fetchfleet.worker`."""

from fetchfleet.worker.cli.app import main

main()
