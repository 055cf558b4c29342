"""Redis support for every room: startup checks, ACL users, batched script calls, key repair, error reports.

It depends on the keys and scripts of jobs/, not on held lanes or running fetches.
"""
