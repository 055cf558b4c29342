"""The pages of the console: what each reads, its actions, and the stream that keeps it up to date."""
