"""HTTP/2 (RFC 9113): the exchanges with an origin share one or two connections."""
