"""Text and what is written about it: segments, pieces, tags, and the grammar of tagged lines."""
