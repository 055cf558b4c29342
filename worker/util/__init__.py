"""Tasks, threads, clocks, back-off, zstd, file errors: nothing that knows of fetches, lanes or Redis keys."""
