"""Images in files: decoding them, and counting those that cannot be used."""
