"""The demo: a fleet against well-behaved and misbehaving hosts."""
