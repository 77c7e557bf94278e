"""The hooks that run in the calls of a model: one file for each place in it."""
