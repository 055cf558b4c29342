"""Developer tools behind scripts/: bench, chaos, demo, scenarios, and the recording origin."""
