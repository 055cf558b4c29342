"""Ingress of fetches: inboxes, arq jobs and webhooks. The Python client writes to lanes directly (jobs/)."""
