"""Corpora, and batches made of them."""
