"""Servers that record what they saw: the judges of politeness."""
