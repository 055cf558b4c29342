"""What every room needs of Redis: startup checks, batched script calls, key repair, error reports."""
