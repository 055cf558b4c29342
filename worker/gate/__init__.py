"""Admission to a host: cool-down, rate limit, quota, breaker, concurrency, robots.txt rules. Pure."""
