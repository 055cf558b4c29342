"""`python -m worker` is `fetchfleet`."""

from worker.cli import main

main()
