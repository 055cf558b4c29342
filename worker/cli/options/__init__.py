"""The options of commands: shared ones, those of commands that start workers, and `--header`."""
