"""What protects a host: cool-down, pace, breaker and concurrency of one lane. Pure."""
