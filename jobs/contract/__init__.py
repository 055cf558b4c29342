"""The contract: fetches, results, messages and their checks. Pure."""
