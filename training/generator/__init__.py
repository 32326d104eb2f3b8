"""Fine-tuning of the generator."""
