"""A lane held by this worker, and its side in Redis."""
