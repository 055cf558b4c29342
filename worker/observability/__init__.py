"""Logging for every room: events, redaction, percentiles and rates; and the health that a worker tells."""
