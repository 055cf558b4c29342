"""The registry of log events.

Workers do not import it. Tools write docs/events.json from it, and tests compare every log line with it.
"""
