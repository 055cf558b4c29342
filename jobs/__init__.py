"""The contract and the producer's client."""
