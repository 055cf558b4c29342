"""The index of WARC segments, in the format CDXJ."""
