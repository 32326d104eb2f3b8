"""Scores, their significance and reports."""
