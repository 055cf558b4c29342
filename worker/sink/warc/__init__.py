"""The sink that stores exchanges as records of WARC segments."""
