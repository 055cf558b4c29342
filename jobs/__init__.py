"""The contract between producers and workers, and the producer's client. Knows nothing of the worker.

contract/: what a fetch, a result and a message are; checks and canonical forms; no I/O.
client/: submitting, batches and dead letters, for producers; the public names are in fetchfleet.
scripts/: the only callers of the Lua files in lua/, one typed function each.
Beside them: the Redis keys and the connection, errors, and the notification of workers through arq.
"""
