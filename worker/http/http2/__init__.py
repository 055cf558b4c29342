"""HTTP/2 (RFC 9113): many exchanges on one or two connections to an origin."""
