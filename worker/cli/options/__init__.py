"""The options of commands: those that several share, keys of the policy, header fields."""
