"""The worker: acquires lanes, makes their fetches, stores bodies and writes results (README.md)."""
