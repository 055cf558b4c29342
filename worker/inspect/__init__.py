"""Read-only views of a fleet, out of Redis."""
