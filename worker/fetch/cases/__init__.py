"""The special cases of a fetch. A plain GET enters none of them."""
