"""What `scripts/bench.py` is made of: rows to measure, the two sides of a row, and the processes they live in."""
