"""Long runs over many rows: files that are whole or absent, tables that go on where they stopped, a busy device."""
