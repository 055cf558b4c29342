"""Read-only views of a fleet, from its state in Redis."""
