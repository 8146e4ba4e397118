"""The figures of `memattn visualize`: a function from arrays to a matplotlib figure each, and how one is written."""
