"""How many bodies whose decoders need large windows are taken at a time.

A decoder of br or zstd holds megabytes for as long as its body comes, one of gzip or deflate 32 KiB. So only
a few of a worker's requests at a time offer a host the former; the others' bodies come in the latter.
"""

AT_ONCE = 1
"""With its 18 MiB at most it fits beside everything else in a worker's first 100 MiB."""

LARGE = frozenset({"br", "zstd"})


class Windows:
    """Those of a worker process."""

    def __init__(self, free: int = AT_ONCE) -> None:
        self.free = free


class OneWindow:
    """What one attempt has of them: none, or one."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._ours = False

    def take(self) -> bool:
        """Whether there is one for us, or was before."""
        if not self._ours and self._windows.free:
            self._windows.free -= 1
            self._ours = True
        return self._ours

    def give_back(self) -> None:
        """It is somebody else's to take; again without harm."""
        if self._ours:
            self._windows.free += 1
            self._ours = False
