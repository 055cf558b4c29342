"""The storage of bodies: the port (`base`), the sinks behind it, free disk space, and the index of bodies.

The fetch room uses `base`, `disk_space` and `index_entry` alone; `factory` chooses the implementation.
"""
