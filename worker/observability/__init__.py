"""Log events, redaction, percentiles and rates for every room, and the health endpoint of a worker."""
