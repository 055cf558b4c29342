"""Hides optional packages from a library that would import them although this project does not need them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hidden(package: str) -> Iterator[None]:
    """Within the block, let an import of the package raise ImportError, even if it was imported before."""
    imported = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]  # as documented for sys.modules
    try:
        yield
    finally:
        del sys.modules[package]
        if imported is not None:
            sys.modules[package] = imported
