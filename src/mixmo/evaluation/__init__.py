"""Evaluation of trained networks: predictions, metrics, robustness, costs, comparison."""
