"""Kafka: consumers, producers and topics."""
