"""Keeps objects that live as long as the process out of garbage collection."""

import gc


def set_aside() -> None:
    """Exempt all present objects from collection: modules, settings, a worker's parts.

    For a process that has started up, or is about to end. Garbage among them is never freed; collecting it
    first would take as long as many fetches.
    """
    gc.freeze()
