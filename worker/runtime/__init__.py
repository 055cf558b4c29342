"""One worker process: `build` wires it, `Runtime` runs and stops it, arq brings it jobs.

Also its own loops: heartbeat, statistics, disk guard, policy changes.
"""
