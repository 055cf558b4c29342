"""Below the engines: the egress guard, DNS, TLS, sockets."""
