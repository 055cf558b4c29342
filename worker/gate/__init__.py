"""The protection of a host: cool-down, rate limit, breaker and concurrency of one lane. Pure."""
