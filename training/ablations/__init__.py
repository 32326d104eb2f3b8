"""Baselines that are trained for comparison and never served."""
