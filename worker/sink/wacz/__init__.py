"""Packages of segments for archives, in the format WACZ."""
