"""A response body on its way to the sink: decoded, checked, split into lines."""
