"""Prediction, export, the Hub, and the authors' checkpoints."""
