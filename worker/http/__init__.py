"""HTTP exchanges with hosts: the interface of an engine, the engines, and the connections below them."""
