"""The contract between producers and workers, and the producer's client. Does not import the worker.

contract/: fetches, results and messages, with their checks and canonical forms; no I/O.
client/: submits, batches and dead letters, for producers; the public names are in fetchfleet.
scripts/: typed functions for the Lua files in lua/, which nothing else calls.
The modules of this folder: Redis keys and connections, errors, and notifications through arq.
"""
