"""The commands that follow the whole fleet live: events, top, and status with --watch."""
