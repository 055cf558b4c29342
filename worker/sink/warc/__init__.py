"""Bodies as records of WARC segments (ISO 28500)."""
