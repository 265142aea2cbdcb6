"""Weights on disk: readers and writers of every format, names, the model cache."""
