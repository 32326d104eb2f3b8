"""The base model and its adapters: loading, attention, KV cache, int8."""
