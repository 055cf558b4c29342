"""The Python of scripts/: bench, chaos, demo, scenarios, and the recording origin."""
