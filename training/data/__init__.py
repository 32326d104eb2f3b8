"""Corpora, and the batches made from them."""
