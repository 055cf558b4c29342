"""The lanes that a worker holds, and the start of their fetches."""
