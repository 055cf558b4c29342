"""Keeps objects that live as long as the process out of garbage collection."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def none_yet() -> Iterator[None]:
    """Collect no garbage within the block; imports create many lasting objects and little garbage."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def set_aside() -> None:
    """Exempt all present objects from collection: modules, settings, a worker's parts.

    For a process that has started up, or is about to end. Garbage among them is never freed; collecting it
    first would take as long as many fetches.
    """
    gc.freeze()
