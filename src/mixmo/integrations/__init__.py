"""MixMo in the training loops of Lightning and timm."""
