"""HTTP/1.1: messages, and one connection to a host."""
