"""Backbones: the paper's, registered with timm, and what MixMo needs of any other."""
