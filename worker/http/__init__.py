"""The exchange with a host: engines, connections, the egress guard."""
