"""Scenarios: three workers against hostile hosts, checked by the hosts' records."""
