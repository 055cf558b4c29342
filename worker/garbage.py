"""What a worker process starts with is not looked through for garbage as long as it lives."""

import gc


def set_aside() -> None:
    """All that is here now stays: modules, settings, a worker's parts. For a process that is a worker."""
    gc.collect()
    gc.freeze()
