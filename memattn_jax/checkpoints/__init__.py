"""Checkpoints, in every container people hold, to NNX modules and back. Nothing that a file contains is executed."""
