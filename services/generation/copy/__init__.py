"""The ``copy`` engine: constrained copying with drafts, continuous batching and one forward pass for all segments."""
