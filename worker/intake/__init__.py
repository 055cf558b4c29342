"""Ingress of fetches by the inbox and as arq jobs. The Python client writes to lanes directly (jobs/)."""
