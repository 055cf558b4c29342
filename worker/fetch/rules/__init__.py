"""What an outcome means for a fetch. Pure."""
