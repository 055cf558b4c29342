"""The producer's client: submit, batches, dead letters."""
