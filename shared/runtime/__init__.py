"""Logs, metrics and Ray."""
