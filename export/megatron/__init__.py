"""Readers of Megatron's checkpoints, without Megatron and without unpickling. Start at `checkpoint.open_megatron`."""
