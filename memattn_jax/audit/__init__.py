"""Audits: from a checkpoint and a prompt log to evidence that can be looked at, handed on and checked again."""
