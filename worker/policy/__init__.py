"""The policy of each host, from the policy file or set at run time, and the egress rule."""
