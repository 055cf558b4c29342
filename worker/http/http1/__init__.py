"""HTTP/1.1: header sections, bodies, and one connection to a host."""
