"""Where the processor time of a worker goes."""
