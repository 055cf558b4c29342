"""Where bodies go."""
