"""A fleet on one machine, for the length of `fetchfleet run`: embedded Redis, worker processes, progress."""
