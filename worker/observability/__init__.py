"""Log events, redaction, counters and rates for every room, and the health endpoint of a worker."""
