"""The workshop: turns a training checkpoint into what the runtime serves.

The runtime itself reads what it serves (`jitney.runtime.weights`); this folder adds the formats, the calibration and
the packaging that happen once, before serving. It imports the runtime; only the command line imports it.
"""
