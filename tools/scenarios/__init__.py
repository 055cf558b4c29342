"""Scenarios: three workers against hostile hosts, checked by the requests that the hosts recorded."""
