"""Which lanes a worker holds, and when a fetch of them starts."""
