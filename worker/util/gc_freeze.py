"""Reduces garbage collection of long-lived objects: those of the process, and those of fetches in flight."""

import gc

YOUNG_OBJECTS = 40_000
"""New objects between two collections: about four megabytes.

With Python's default of 700, most collections traverse fetches that are still in flight. With 10,000, they
traverse lanes that are still held if each of many hosts has one fetch.
"""


def freeze() -> None:
    """Exempt all objects that exist now from garbage collection, and collect later ones rarely.

    For a process that has started up, or is about to end. Garbage among these objects is never freed, because
    a collection first would take as long as many fetches.
    """
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
