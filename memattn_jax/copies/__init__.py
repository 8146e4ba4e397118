"""Whether a picture is a copy of another."""
