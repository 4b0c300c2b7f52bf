"""Datasets, their images in memory or streamed, and the batches made of them."""
