"""A profiler of the CPU time of a worker, by subsystem."""
