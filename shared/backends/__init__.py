"""What lies outside: Kafka, Redis."""
