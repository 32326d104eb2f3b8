"""The training loop and what generator and selector share."""
