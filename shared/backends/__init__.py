"""Clients of the systems outside: Kafka and Redis."""
