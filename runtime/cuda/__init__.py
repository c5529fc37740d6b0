"""The step on an NVIDIA card: fixed-address state, staged changes, captured graphs."""
