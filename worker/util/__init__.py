"""Tasks, threads, clocks, back-off: nothing of this project's domain."""
