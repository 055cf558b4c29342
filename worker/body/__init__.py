"""A response body on its way to the sink: decoded, compared with digests, split into lines, timed.

`pipeline` is the entrance. It enters the other modules only for bodies that need them.
"""
