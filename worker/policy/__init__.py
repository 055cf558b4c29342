"""The policy of each host, from the file or set at run time, and the egress rule."""
