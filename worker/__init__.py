"""The runtime: takes lanes, fetches, writes bodies and results."""
