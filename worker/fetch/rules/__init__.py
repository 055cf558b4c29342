"""The meaning of an outcome for its fetch. Pure."""
