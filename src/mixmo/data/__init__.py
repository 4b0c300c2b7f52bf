"""Datasets, decoding, loading and the making of mixtures."""
