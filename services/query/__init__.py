"""HTTP: stored results by document and by mention, one-off extraction, and feedback."""
