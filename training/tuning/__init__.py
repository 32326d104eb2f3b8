"""The loop of a training run and what generator and selector share in it."""
