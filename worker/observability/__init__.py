"""Logging for every room: the events, redaction of what they show, percentiles and rates."""
