"""The lists and details that console, HTTP API and terminal show: hosts, batches, dead letters."""
