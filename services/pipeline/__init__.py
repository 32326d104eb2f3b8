"""The pipeline service: from a document to its extraction."""
