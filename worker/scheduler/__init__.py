"""Acquires, serves and releases the lanes of a worker, and starts their fetches."""
