"""HTTP: results by document and by mention, and one-off extraction."""
