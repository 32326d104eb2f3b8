"""The ingest service: documents from Kafka, through the pipeline, to Redis and Kafka."""
