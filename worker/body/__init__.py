"""A response body on its way to the sink: decoded, verified, split into lines, timed.

`pipeline` is the entry point. It uses the other modules only for bodies that need them.
"""
