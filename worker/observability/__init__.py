"""Log events, redaction, percentiles."""
