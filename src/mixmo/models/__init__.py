"""Backbones: the paper's, registered with timm, and tools to modify any other."""
