"""Tasks, threads, clocks, back-off, zstd: nothing that knows of fetches, lanes or Redis keys."""
