"""The server of `fetchfleet serve`: access control, the HTTP API, and the pages of the console.

It needs the extra `console`. Only `worker/cli/serve.py` imports it.
"""
