"""Whether an image is a copy of another."""
