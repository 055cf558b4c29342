"""Storage of bodies: the interface (`base`), the sinks, the rules for free disk space, the index of bodies.

The fetch room imports only `base`, `disk_space` and `index_entry`. `factory` makes the configured sink.
"""
