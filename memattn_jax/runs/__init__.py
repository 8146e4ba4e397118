"""Long runs over many rows: atomic file writes, resumable tables, and overlap of host and device work."""
