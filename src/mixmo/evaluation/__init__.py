"""Predictions of trained networks and what they are worth: metrics, robustness, costs, comparison."""
