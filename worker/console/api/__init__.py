"""The HTTP API: its operations by subject, and the OpenAPI document that describes them."""
