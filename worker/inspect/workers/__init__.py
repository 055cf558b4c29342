"""The workers of a fleet, as others see them: their differences, and those without heartbeats."""
