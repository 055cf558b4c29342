"""The default engine: one shared httpx client over a transport with a connection pool for each lane."""
