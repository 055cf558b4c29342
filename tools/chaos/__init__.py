"""A fleet under faults that a seed draws."""
