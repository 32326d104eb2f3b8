"""The pipeline service: a document to its extraction."""
