"""One worker process: `build` wires it, `Runtime` runs and stops it, `arq_worker` runs its arq jobs.

Its own loops belong to this room too: heartbeat, statistics, disk guard, policy changes.
"""
