"""Access control of the server: the token, sessions, hosts and origins, and the guard that applies them."""
