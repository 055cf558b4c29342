"""HTTP/2 (RFC 9113): an origin's exchanges share one or two connections."""
