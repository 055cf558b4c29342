"""Connections to hosts: the egress guard, DNS, TCP, TLS, and the pool of each lane."""
