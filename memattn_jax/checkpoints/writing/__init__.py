"""Checkpoints written tensor by tensor, so that no more than one tensor is in memory beside the mapped files."""
