"""Redis plumbing that every room shares: startup checks, batched script calls, key repair, error reports.

Knows the keys and scripts of jobs/, and nothing of lanes being served or of fetches.
"""
