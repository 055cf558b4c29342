"""The display and the output files of a command that follows a batch: progress, report, records."""
