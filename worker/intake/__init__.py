"""Fetches that come in by the inbox or as arq jobs. The Python client writes to lanes itself (jobs/)."""
