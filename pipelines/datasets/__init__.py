"""Data sets of our own, one a file: TFDS builders, found by their names."""
