"""Checks of the fields of a fetch, one module for each kind. Pure."""
