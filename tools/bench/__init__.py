"""Peers side by side, and where the time of a fetch goes."""
