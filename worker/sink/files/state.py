"""What is ours in the out folder."""

STATE_FOLDER = ".fetchfleet"
"""In it: a run's Redis and the workers' logs, and the parts of bodies that are not whole yet."""
