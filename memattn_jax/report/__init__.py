"""Figures, tables of results, and the summaries that commands print."""
