"""The engine over the worker's one shared httpx client."""
