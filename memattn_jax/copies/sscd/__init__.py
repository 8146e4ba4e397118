"""SSCD, the descriptor by which the field measures copies."""
