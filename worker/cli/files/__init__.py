"""The commands that write files of a batch."""
