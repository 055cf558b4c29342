"""A lane that this worker holds, its calls to Redis, and the settlement of its fetches."""
