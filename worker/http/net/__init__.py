"""Connections to addresses: the egress guard, DNS, sockets and TLS."""
