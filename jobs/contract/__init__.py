"""The data that producers and workers exchange, as types with their checks. No Redis, no clock, no I/O.

Fetches and results (model, with a module of checks per subject), URLs and lanes, ids, the entry of a fetch in
Redis, and the messages that come in from other languages.
"""
