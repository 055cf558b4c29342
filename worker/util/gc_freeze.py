"""What a process starts with, and keeps as long as it lives, is not looked through for garbage."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def none_yet() -> Iterator[None]:
    """For imports: they make much that stays and next to no garbage, so none is looked for meanwhile."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def set_aside() -> None:
    """All that is here now stays: modules, settings, a worker's parts. For a process that has begun or ends.

    What little garbage is among it stays too: to look for it would take as long as many a fetch.
    """
    gc.freeze()
