"""MixMo in other trainers: Lightning, timm."""
