"""The exchange with a host: the shared client, its pools, the egress guard, errors mapped once."""
