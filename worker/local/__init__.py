"""A fleet on one machine, for the length of `fetchfleet run`: its processes, Redis, progress and outputs."""
