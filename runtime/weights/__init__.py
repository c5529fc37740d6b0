"""Readers of checkpoints: from a model's name to a `Backend`. Start at `locate.open_backend`; torch loads with the
first tensor, not before."""
