"""The commands of `jitney`, one file each. Importing them loads no torch: a command loads what it runs."""
