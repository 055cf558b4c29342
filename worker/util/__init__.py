"""Helpers without domain knowledge: tasks, thread pools, clocks, back-off, zstd, file errors."""
