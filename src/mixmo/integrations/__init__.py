"""MixMo in trainers that people have: Lightning's, timm's."""
