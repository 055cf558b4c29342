"""A fleet and a crowd of well-behaved and misbehaving hosts."""
