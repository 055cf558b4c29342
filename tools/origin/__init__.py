"""Servers that record every request, and measures of politeness."""
