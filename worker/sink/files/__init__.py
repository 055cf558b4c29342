"""The sink that stores each body as a file, and the out folder that both sinks write to."""
