"""The fleet live in a terminal: `fetchfleet top`, and the text of log lines that it shares with `events`."""
