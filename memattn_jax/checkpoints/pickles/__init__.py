"""The inner parts of `pickle_file`: the zip container, a machine for pickles, and what the names in them stand for."""
