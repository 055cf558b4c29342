"""One fetch, from its claim to its result."""
