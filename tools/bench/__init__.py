"""Benchmarks: fetchfleet beside other programs, and a profile of one fetch."""
