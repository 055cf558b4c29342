"""Three workers and hostile hosts, at length."""
