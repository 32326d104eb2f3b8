"""The base model, its adapters, and how it is run."""
