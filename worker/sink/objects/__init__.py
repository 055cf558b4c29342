"""The sink that stores bodies as objects of a store: Amazon S3, Google Cloud Storage, Azure Blob Storage."""
