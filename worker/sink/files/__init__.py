"""Bodies as files, renamed into place when they are whole."""
