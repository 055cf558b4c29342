"""The commands that write the results or the archive of fetches to one file."""
