"""What a process needs to run: logs, metrics, Ray."""
