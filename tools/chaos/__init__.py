"""Chaos runs: a fleet under faults that are drawn from a seed."""
